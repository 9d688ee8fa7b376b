// Makes calls with version 2 of the official Go client, or prints its descriptors with the argument "describe".
package main

import (
	"context"
	"log"
	"os"

	"github.com/yandex-cloud/go-genproto/yandex/cloud/iam/v1"
	greenplum "github.com/yandex-cloud/go-genproto/yandex/cloud/mdb/greenplum/v1"
	ycsdk "github.com/yandex-cloud/go-sdk/v2"
	iamsdk "github.com/yandex-cloud/go-sdk/v2/services/iam/v1"

	"clients/calls"
)

type client struct{ sdk *ycsdk.SDK }

func (c client) Get(ctx context.Context, backupID string) (*greenplum.Backup, error) {
	return get(ctx, c.sdk, backupID)
}

func (c client) List(ctx context.Context, folderID string, pageSize int64) ([]*greenplum.Backup, error) {
	return backups(ctx, c.sdk, folderID, pageSize)
}

func (c client) ListCluster(ctx context.Context, clusterID string, pageSize int64) ([]*greenplum.Backup, error) {
	return clusterBackups(ctx, c.sdk, clusterID, pageSize)
}

func (c client) Delete(ctx context.Context, backupID string) error {
	client, err := service(ctx, c.sdk)
	if err == nil {
		_, err = client.Delete(ctx, &greenplum.DeleteBackupRequest{BackupId: backupID})
	}
	return err
}

func (c client) CreateToken(ctx context.Context, request *iam.CreateIamTokenRequest) error {
	_, err := iamsdk.NewIamTokenClient(c.sdk).Create(ctx, request)
	return err
}

func (c client) Close(ctx context.Context) error { return c.sdk.Shutdown(ctx) }

func main() {
	if len(os.Args) == 2 && os.Args[1] == "describe" {
		if err := describe(); err != nil {
			log.Fatal(err)
		}
		return
	}
	calls.Run(func(ctx context.Context, address, token string) (calls.Client, error) {
		sdk, err := connect(ctx, address, token)
		return client{sdk}, err
	})
}
