// Command go implements the API with grpc-go and pgx: pgx's pool, keyset paging, messages built from rows.
package main

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"log"
	"net"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	"bench/peer/pb"
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
		return nil, status.Error(codes.NotFound, "The backup does not exist.")
	}
	return backup, err
}

func (s *server) List(ctx context.Context, request *pb.ListBackupsRequest) (*pb.ListBackupsResponse, error) {
	size := request.PageSize
	if size == 0 {
		size = 100
	}
	rows, err := s.page(ctx, request, size)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	response := &pb.ListBackupsResponse{Backups: make([]*pb.Backup, 0, size)}
	for rows.Next() {
		if int64(len(response.Backups)) == size {
			response.NextPageToken = seal(response.Backups[size-1])
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
	createdAt, id, err := open(request.PageToken)
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, "The page token is invalid.")
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

func seal(last *pb.Backup) string {
	position := strconv.FormatInt(last.CreatedAt.AsTime().UnixMicro(), 10) + " " + last.Id
	return base64.RawURLEncoding.EncodeToString([]byte(position))
}

func open(token string) (time.Time, string, error) {
	position, err := base64.RawURLEncoding.DecodeString(token)
	if err != nil {
		return time.Time{}, "", err
	}
	micros, id, _ := strings.Cut(string(position), " ")
	createdAt, err := strconv.ParseInt(micros, 10, 64)
	return time.UnixMicro(createdAt), id, err
}

func main() {
	pool, err := pgxpool.New(context.Background(), os.Args[1])
	if err != nil {
		log.Fatal(err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	grpcServer := grpc.NewServer()
	pb.RegisterBackupServiceServer(grpcServer, &server{pool: pool})
	fmt.Println(listener.Addr().(*net.TCPAddr).Port)
	log.Fatal(grpcServer.Serve(listener))
}
