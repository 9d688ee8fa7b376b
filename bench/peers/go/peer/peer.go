// Package peer has the parts that both peers in Go share: the server, page sizes and page tokens.
package peer

import (
	"context"
	"encoding/base64"
	"fmt"
	"log"
	"net"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"bench/peer/pb"
)

const (
	defaultPageSize = 100
	poolSize        = 10 // the service's default
)

// ErrNotFound is the response to a Get of an absent backup.
var ErrNotFound = status.Error(codes.NotFound, "The backup does not exist.")

// Serve prints the address, and serves until the process is killed. BACKUPS_DATABASE_URL is the URL of PostgreSQL.
func Serve(register func(grpc.ServiceRegistrar, *pgxpool.Pool), options ...grpc.ServerOption) {
	config, err := pgxpool.ParseConfig(os.Getenv("BACKUPS_DATABASE_URL"))
	if err != nil {
		log.Fatal(err)
	}
	config.MaxConns = poolSize
	pool, err := pgxpool.NewWithConfig(context.Background(), config)
	if err != nil {
		log.Fatal(err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	server := grpc.NewServer(options...)
	register(server, pool)
	fmt.Printf("{\"event\": \"listening\", \"address\": %q}\n", listener.Addr())
	log.Fatal(server.Serve(listener))
}

// PageSize returns the requested page size or the default.
func PageSize(request *pb.ListBackupsRequest) int64 {
	if request.PageSize == 0 {
		return defaultPageSize
	}
	return request.PageSize
}

// Seal returns the token of the page after a backup.
func Seal(last *pb.Backup) string {
	position := strconv.FormatInt(last.CreatedAt.AsTime().UnixMicro(), 10) + " " + last.Id
	return base64.RawURLEncoding.EncodeToString([]byte(position))
}

// Open returns the position in a token: `created_at` and id of the last backup of the previous page.
func Open(token string) (time.Time, string, error) {
	invalid := status.Error(codes.InvalidArgument, "The page token is invalid.")
	position, err := base64.RawURLEncoding.DecodeString(token)
	if err != nil {
		return time.Time{}, "", invalid
	}
	text, id, _ := strings.Cut(string(position), " ")
	micros, err := strconv.ParseInt(text, 10, 64)
	if err != nil {
		return time.Time{}, "", invalid
	}
	return time.UnixMicro(micros), id, nil
}
