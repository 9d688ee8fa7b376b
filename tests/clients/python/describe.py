"""Prints the file descriptors of the official Python client, as JSON."""

import json

from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.json_format import MessageToDict
from yandex.cloud.endpoint import api_endpoint_pb2, api_endpoint_service_pb2
from yandex.cloud.mdb.greenplum.v1 import backup_pb2, backup_service_pb2, cluster_service_pb2

files = {}
for module in (api_endpoint_pb2, api_endpoint_service_pb2, backup_pb2, backup_service_pb2, cluster_service_pb2):
    file = FileDescriptorProto()
    module.DESCRIPTOR.CopyToProto(file)
    files[file.name] = MessageToDict(file)
print(json.dumps(files))
