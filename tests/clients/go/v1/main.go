// Makes calls with version 1 of the official Go client.
package main

import (
	"context"

	"github.com/yandex-cloud/go-genproto/yandex/cloud/iam/v1"
	greenplum "github.com/yandex-cloud/go-genproto/yandex/cloud/mdb/greenplum/v1"
	ycsdk "github.com/yandex-cloud/go-sdk"

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
	_, err := c.sdk.MDB().Greenplum().Backup().Delete(ctx, &greenplum.DeleteBackupRequest{BackupId: backupID})
	return err
}

func (c client) CreateToken(ctx context.Context, request *iam.CreateIamTokenRequest) error {
	_, err := c.sdk.IAM().IamToken().Create(ctx, request)
	return err
}

func (c client) Close(ctx context.Context) error { return c.sdk.Shutdown(ctx) }

func main() {
	calls.Run(func(ctx context.Context, address, token string) (calls.Client, error) {
		sdk, err := connect(ctx, address, token)
		return client{sdk}, err
	})
}
