// Package calls reads a call from each line of JSON, makes it with an official Go client, and prints its result as a line of JSON.
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
	ListCluster(ctx context.Context, clusterID string, pageSize int64) ([]*greenplum.Backup, error)
	Delete(ctx context.Context, backupID string) error
	CreateToken(ctx context.Context, request *iam.CreateIamTokenRequest) error
	Close(ctx context.Context) error
}

// Connect makes a Client.
type Connect func(ctx context.Context, address, token string) (Client, error)

type input struct {
	Token     string
	Call      string
	BackupID  string `json:"backup_id"`
	FolderID  string `json:"folder_id"`
	ClusterID string `json:"cluster_id"`
	PageSize  int64  `json:"page_size"`
}

// Run makes calls until standard input is closed. The address of the service is the first argument.
func Run(connect Connect) {
	lines := bufio.NewScanner(os.Stdin)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		output := map[string]any{}
		if rows, err := result(ctx, connect, lines.Bytes()); err != nil {
			output["code"], output["message"], output["request_id"] = Explained(err)
		} else {
			output["backups"] = rows
		}
		encoded, err := json.Marshal(output)
		if err != nil {
			panic(err)
		}
		fmt.Println(string(encoded))
		cancel()
	}
}

func result(ctx context.Context, connect Connect, line []byte) ([][]any, error) {
	var call input
	if err := json.Unmarshal(line, &call); err != nil {
		return nil, err
	}
	client, err := connect(ctx, os.Args[1], call.Token)
	if err != nil {
		return nil, err
	}
	defer client.Close(ctx)
	switch call.Call {
	case "get":
		backup, err := client.Get(ctx, call.BackupID)
		return rows(backup), err
	case "list":
		backups, err := client.List(ctx, call.FolderID, call.PageSize)
		return rows(backups...), err
	case "list_cluster":
		backups, err := client.ListCluster(ctx, call.ClusterID, call.PageSize)
		return rows(backups...), err
	case "delete":
		return nil, client.Delete(ctx, call.BackupID)
	case "create token":
		identity := &iam.CreateIamTokenRequest_YandexPassportOauthToken{YandexPassportOauthToken: "x"}
		return nil, client.CreateToken(ctx, &iam.CreateIamTokenRequest{Identity: identity})
	}
	return nil, fmt.Errorf("unknown call: %s", call.Call)
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
