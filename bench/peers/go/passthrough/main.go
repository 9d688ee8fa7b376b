// Command passthrough implements the API with grpc-go and pgx as the service does: the column `wire` has each row as an encoded element of
// ListBackupsResponse.backups, and a page is the concatenation of its rows. Nothing is decoded but the request and a page's last row.
package main

import (
	"context"
	"errors"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"google.golang.org/grpc"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"bench/peer/pb"
	"bench/peer/peer"
)

// The service's queries for one call: service/postgres/catalog.py.
const (
	getSQL    = "SELECT folder_id, wire FROM backups WHERE id = $1"
	firstPage = "SELECT wire FROM backups WHERE folder_id = $1 ORDER BY created_at DESC, id DESC LIMIT $2 + 1"
	nextPage  = "SELECT wire FROM backups WHERE folder_id = $1 AND (created_at, id) < ($3, $4)" +
		" ORDER BY created_at DESC, id DESC LIMIT $2 + 1"
	rowSize = 140 // bytes, about
)

// codec decodes requests, and sends responses as they are.
type codec struct{}

func (codec) Name() string { return "proto" }

func (codec) Marshal(response any) (mem.BufferSlice, error) {
	return mem.BufferSlice{mem.SliceBuffer(response.([]byte))}, nil
}

func (codec) Unmarshal(data mem.BufferSlice, request any) error {
	buffer := data.MaterializeToBuffer(mem.DefaultBufferPool())
	defer buffer.Free()
	return proto.Unmarshal(buffer.ReadOnlyData(), request.(proto.Message))
}

type server struct{ pool *pgxpool.Pool }

func (s *server) get(ctx context.Context, request *pb.GetBackupRequest) ([]byte, error) {
	var wire []byte
	err := s.pool.QueryRow(ctx, getSQL, request.BackupId).Scan(nil, &wire)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, peer.ErrNotFound
	}
	if err != nil {
		return nil, err
	}
	_, _, tag := protowire.ConsumeTag(wire)
	backup, _ := protowire.ConsumeBytes(wire[tag:])
	return backup, nil
}

func (s *server) list(ctx context.Context, request *pb.ListBackupsRequest) ([]byte, error) {
	size := peer.PageSize(request)
	rows, err := s.page(ctx, request, size)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	page := make([]byte, 0, size*rowSize)
	lastRow := 0
	for count := int64(0); rows.Next(); count++ {
		if count == size { // the extra row means that there is a next page
			return withToken(page, page[lastRow:])
		}
		lastRow = len(page)
		page = append(page, rows.RawValues()[0]...)
	}
	return page, rows.Err()
}

func (s *server) page(ctx context.Context, request *pb.ListBackupsRequest, size int64) (pgx.Rows, error) {
	if request.PageToken == "" {
		return s.pool.Query(ctx, firstPage, request.FolderId, size)
	}
	createdAt, id, err := peer.Open(request.PageToken)
	if err != nil {
		return nil, err
	}
	return s.pool.Query(ctx, nextPage, request.FolderId, size, createdAt, id)
}

// withToken appends the token of the next page to a page that ends with lastRow.
func withToken(page, lastRow []byte) ([]byte, error) {
	var decoded pb.ListBackupsResponse // a row is a page of one backup
	if err := proto.Unmarshal(lastRow, &decoded); err != nil {
		return nil, err
	}
	token := &pb.ListBackupsResponse{NextPageToken: peer.Seal(decoded.Backups[0])}
	return proto.MarshalOptions{}.MarshalAppend(page, token)
}

// method describes a unary method whose handler returns an encoded response.
func method[Request any](name string, handle func(*server, context.Context, *Request) ([]byte, error)) grpc.MethodDesc {
	return grpc.MethodDesc{MethodName: name, Handler: func(
		registered any, ctx context.Context, decode func(any) error, _ grpc.UnaryServerInterceptor,
	) (any, error) {
		request := new(Request)
		if err := decode(request); err != nil {
			return nil, err
		}
		return handle(registered.(*server), ctx, request)
	}}
}

func main() {
	description := &grpc.ServiceDesc{
		ServiceName: pb.BackupService_ServiceDesc.ServiceName,
		HandlerType: (*any)(nil),
		Methods:     []grpc.MethodDesc{method("Get", (*server).get), method("List", (*server).list)},
	}
	register := func(registrar grpc.ServiceRegistrar, pool *pgxpool.Pool) {
		registrar.RegisterService(description, &server{pool: pool})
	}
	peer.Serve(register, grpc.ForceServerCodecV2(codec{}))
}
