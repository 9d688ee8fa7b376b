// Command rows implements the API with grpc-go and pgx: keyset paging, messages built from rows.
package main

import (
	"context"
	"errors"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/timestamppb"

	"bench/peer/pb"
	"bench/peer/peer"
)

const (
	columns   = "id, folder_id, created_at, source_cluster_id, started_at, size"
	getSQL    = "SELECT " + columns + " FROM backups WHERE id = $1"
	firstPage = "SELECT " + columns + " FROM backups WHERE folder_id = $1 ORDER BY created_at DESC, id DESC LIMIT $2"
	nextPage  = "SELECT " + columns + " FROM backups WHERE folder_id = $1 AND (created_at, id) < ($3, $4)" +
		" ORDER BY created_at DESC, id DESC LIMIT $2"
)

type server struct {
	pb.UnimplementedBackupServiceServer
	pool *pgxpool.Pool
}

func (s *server) Get(ctx context.Context, request *pb.GetBackupRequest) (*pb.Backup, error) {
	backup, err := scan(s.pool.QueryRow(ctx, getSQL, request.BackupId))
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, peer.ErrNotFound
	}
	return backup, err
}

func (s *server) List(ctx context.Context, request *pb.ListBackupsRequest) (*pb.ListBackupsResponse, error) {
	size := peer.PageSize(request)
	rows, err := s.page(ctx, request, size)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	response := &pb.ListBackupsResponse{Backups: make([]*pb.Backup, 0, size)}
	for rows.Next() {
		if int64(len(response.Backups)) == size {
			response.NextPageToken = peer.Seal(response.Backups[size-1])
			break
		}
		backup, err := scan(rows)
		if err != nil {
			return nil, err
		}
		response.Backups = append(response.Backups, backup)
	}
	return response, rows.Err()
}

func (s *server) page(ctx context.Context, request *pb.ListBackupsRequest, size int64) (pgx.Rows, error) {
	if request.PageToken == "" {
		return s.pool.Query(ctx, firstPage, request.FolderId, size+1)
	}
	createdAt, id, err := peer.Open(request.PageToken)
	if err != nil {
		return nil, err
	}
	return s.pool.Query(ctx, nextPage, request.FolderId, size+1, createdAt, id)
}

func scan(row pgx.Row) (*pb.Backup, error) {
	backup := &pb.Backup{}
	var createdAt, startedAt time.Time
	err := row.Scan(&backup.Id, &backup.FolderId, &createdAt, &backup.SourceClusterId, &startedAt, &backup.Size)
	if err != nil {
		return nil, err
	}
	backup.CreatedAt, backup.StartedAt = timestamppb.New(createdAt), timestamppb.New(startedAt)
	return backup, nil
}

func main() {
	peer.Serve(func(registrar grpc.ServiceRegistrar, pool *pgxpool.Pool) {
		pb.RegisterBackupServiceServer(registrar, &server{pool: pool})
	})
}
