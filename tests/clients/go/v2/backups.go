package main

import (
	"context"

	greenplum "github.com/yandex-cloud/go-genproto/yandex/cloud/mdb/greenplum/v1"
	ycsdk "github.com/yandex-cloud/go-sdk/v2"
	"github.com/yandex-cloud/go-sdk/v2/credentials"
	"github.com/yandex-cloud/go-sdk/v2/pkg/iterator"
	"github.com/yandex-cloud/go-sdk/v2/pkg/options"
	"google.golang.org/grpc"
)

func connect(ctx context.Context, address, token string) (*ycsdk.SDK, error) {
	return ycsdk.Build(ctx, options.WithCredentials(credentials.IAMToken(token)), options.WithDiscoveryEndpoint(address))
}

func service(ctx context.Context, sdk *ycsdk.SDK) (greenplum.BackupServiceClient, error) {
	connection, err := sdk.GetConnection(ctx, "yandex.cloud.mdb.greenplum.v1.BackupService")
	return greenplum.NewBackupServiceClient(connection), err
}

func get(ctx context.Context, sdk *ycsdk.SDK, backupID string) (*greenplum.Backup, error) {
	client, err := service(ctx, sdk)
	if err != nil {
		return nil, err
	}
	return client.Get(ctx, &greenplum.GetBackupRequest{BackupId: backupID})
}

type page struct{ *greenplum.ListBackupsResponse }

func (p page) Items() []*greenplum.Backup { return p.Backups }

func backups(ctx context.Context, sdk *ycsdk.SDK, folderID string, pageSize int64) ([]*greenplum.Backup, error) {
	client, err := service(ctx, sdk)
	if err != nil {
		return nil, err
	}
	fetch := func(ctx context.Context, request *greenplum.ListBackupsRequest, opts ...grpc.CallOption) (iterator.PageResponse[*greenplum.Backup], error) {
		response, err := client.List(ctx, request, opts...)
		return page{response}, err
	}
	request := &greenplum.ListBackupsRequest{FolderId: folderID, PageSize: pageSize}
	return iterator.NewIterator(ctx, request, fetch).TakeAll()
}

type clusterPage struct {
	*greenplum.ListClusterBackupsResponse
}

func (p clusterPage) Items() []*greenplum.Backup { return p.Backups }

func clusterBackups(ctx context.Context, sdk *ycsdk.SDK, clusterID string, pageSize int64) ([]*greenplum.Backup, error) {
	connection, err := sdk.GetConnection(ctx, "yandex.cloud.mdb.greenplum.v1.ClusterService")
	if err != nil {
		return nil, err
	}
	client := greenplum.NewClusterServiceClient(connection)
	fetch := func(ctx context.Context, request *greenplum.ListClusterBackupsRequest, opts ...grpc.CallOption) (iterator.PageResponse[*greenplum.Backup], error) {
		response, err := client.ListBackups(ctx, request, opts...)
		return clusterPage{response}, err
	}
	request := &greenplum.ListClusterBackupsRequest{ClusterId: clusterID, PageSize: pageSize}
	return iterator.NewIterator(ctx, request, fetch).TakeAll()
}
