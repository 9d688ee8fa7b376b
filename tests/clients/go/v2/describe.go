package main

import (
	"encoding/json"
	"fmt"

	"github.com/yandex-cloud/go-genproto/yandex/cloud/endpoint"
	greenplum "github.com/yandex-cloud/go-genproto/yandex/cloud/mdb/greenplum/v1"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// describe prints the client's descriptors of the files that the service serves, as JSON.
func describe() error {
	files := map[string]json.RawMessage{}
	for _, file := range []protoreflect.FileDescriptor{
		endpoint.File_yandex_cloud_endpoint_api_endpoint_proto,
		endpoint.File_yandex_cloud_endpoint_api_endpoint_service_proto,
		greenplum.File_yandex_cloud_mdb_greenplum_v1_backup_proto,
		greenplum.File_yandex_cloud_mdb_greenplum_v1_backup_service_proto,
		greenplum.File_yandex_cloud_mdb_greenplum_v1_cluster_service_proto,
	} {
		encoded, err := protojson.Marshal(protodesc.ToFileDescriptorProto(file))
		if err != nil {
			return err
		}
		files[file.Path()] = encoded
	}
	encoded, err := json.Marshal(files)
	fmt.Println(string(encoded))
	return err
}
