// Package calls makes the calls that standard input asks for, a line of JSON each, and prints a line of JSON for each.
package calls

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"time"

	"github.com/yandex-cloud/go-genproto/yandex/cloud/iam/v1"
	greenplum "github.com/yandex-cloud/go-genproto/yandex/cloud/mdb/greenplum/v1"
)

// Client is a version of the official Go client.
type Client interface {
	Get(ctx context.Context, backupID string) (*greenplum.Backup, error)
	List(ctx context.Context, folderID string, pageSize int64) ([]*greenplum.Backup, error)
	Delete(ctx context.Context, backupID string) error
	CreateToken(ctx context.Context, request *iam.CreateIamTokenRequest) error
	Close(ctx context.Context) error
}

// Connect makes a Client.
type Connect func(ctx context.Context, address, token string) (Client, error)

type asked struct {
	Token    string
	Call     string
	BackupID string `json:"backup_id"`
	FolderID string `json:"folder_id"`
	PageSize int64  `json:"page_size"`
}

// Run answers until standard input ends. The address of the service is the first argument.
func Run(connect Connect) {
	lines := bufio.NewScanner(os.Stdin)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		told := map[string]any{}
		if rows, err := answer(ctx, connect, lines.Bytes()); err != nil {
			told["code"], told["message"], told["request_id"] = Explained(err)
		} else {
			told["backups"] = rows
		}
		encoded, err := json.Marshal(told)
		if err != nil {
			panic(err)
		}
		fmt.Println(string(encoded))
		cancel()
	}
}

func answer(ctx context.Context, connect Connect, line []byte) ([][]any, error) {
	var question asked
	if err := json.Unmarshal(line, &question); err != nil {
		return nil, err
	}
	client, err := connect(ctx, os.Args[1], question.Token)
	if err != nil {
		return nil, err
	}
	defer client.Close(ctx)
	switch question.Call {
	case "get":
		backup, err := client.Get(ctx, question.BackupID)
		return rows(backup), err
	case "list":
		backups, err := client.List(ctx, question.FolderID, question.PageSize)
		return rows(backups...), err
	case "delete":
		return nil, client.Delete(ctx, question.BackupID)
	case "create token":
		identity := &iam.CreateIamTokenRequest_YandexPassportOauthToken{YandexPassportOauthToken: "x"}
		return nil, client.CreateToken(ctx, &iam.CreateIamTokenRequest{Identity: identity})
	}
	return nil, fmt.Errorf("unknown call: %s", question.Call)
}

func rows(backups ...*greenplum.Backup) [][]any {
	found := make([][]any, 0, len(backups))
	for _, b := range backups {
		created, started := b.GetCreatedAt().AsTime().UnixMicro(), b.GetStartedAt().AsTime().UnixMicro()
		found = append(found, []any{
			b.GetId(), b.GetFolderId(), created, b.GetSourceClusterId(), started, b.GetSize(),
			b.GetType(), b.GetMethod(), b.GetJournalSize(),
		})
	}
	return found
}
