package main

import (
	"context"

	greenplum "github.com/yandex-cloud/go-genproto/yandex/cloud/mdb/greenplum/v1"
	ycsdk "github.com/yandex-cloud/go-sdk"
)

func connect(ctx context.Context, address, token string) (*ycsdk.SDK, error) {
	return ycsdk.Build(ctx, ycsdk.Config{Credentials: ycsdk.NewIAMTokenCredentials(token), Endpoint: address})
}

func get(ctx context.Context, sdk *ycsdk.SDK, backupID string) (*greenplum.Backup, error) {
	return sdk.MDB().Greenplum().Backup().Get(ctx, &greenplum.GetBackupRequest{BackupId: backupID})
}

func backups(ctx context.Context, sdk *ycsdk.SDK, folderID string, pageSize int64) ([]*greenplum.Backup, error) {
	request := &greenplum.ListBackupsRequest{FolderId: folderID, PageSize: pageSize}
	return sdk.MDB().Greenplum().Backup().BackupIterator(ctx, request).TakeAll()
}

func clusterBackups(ctx context.Context, sdk *ycsdk.SDK, clusterID string, pageSize int64) ([]*greenplum.Backup, error) {
	request := &greenplum.ListClusterBackupsRequest{ClusterId: clusterID, PageSize: pageSize}
	return sdk.MDB().Greenplum().Cluster().ClusterBackupsIterator(ctx, request).TakeAll()
}
