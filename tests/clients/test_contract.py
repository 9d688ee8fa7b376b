"""The descriptors of the service, compared with those of the official clients.

The Node.js client has no descriptors.
"""

import json
import os
import subprocess
from typing import Any

import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.json_format import MessageToDict

from service import pb
from tests.clients.programs import HERE, command

_Descriptor = dict[str, Any]

_FILES = (
    pb.ApiEndpoint.DESCRIPTOR.file,
    pb.ListApiEndpointsRequest.DESCRIPTOR.file,
    pb.Backup.DESCRIPTOR.file,
    pb.ListBackupsRequest.DESCRIPTOR.file,
    pb.ListClusterBackupsRequest.DESCRIPTOR.file,
)


@pytest.fixture(name="public", scope="module", params=["python", "go_v2"])
def _public(request: pytest.FixtureRequest) -> dict[str, _Descriptor]:
    program, *_ = command(request.param)
    arguments = [str(HERE / "python" / "describe.py")] if request.param == "python" else ["describe"]
    done = subprocess.run([program, *arguments], env={"PATH": os.defpath}, capture_output=True, check=True, timeout=60)
    files: dict[str, _Descriptor] = json.loads(done.stdout)
    return files


def _served() -> dict[str, _Descriptor]:
    files = {}
    for descriptor in _FILES:
        file = FileDescriptorProto()
        descriptor.CopyToProto(file)
        files[file.name] = MessageToDict(file)
    return files


def _members(files: dict[str, _Descriptor]) -> dict[str, Any]:
    """Return every field, enum and method with its declaration, and the reserved numbers, by `Message.field` or `Service.Method`."""
    owners = [
        (owner, kind)
        for file in files.values()
        for kind, name in (("message", "messageType"), ("service", "service"))
        for owner in file.get(name, [])
    ]
    members = {
        f"{owner['name']}.{member['name']}": {key: value for key, value in member.items() if key != "jsonName"}  # only Go's have it
        for owner, kind in owners
        for inner in (("field", "enumType") if kind == "message" else ("method",))
        for member in owner.get(inner, [])
    }
    return members | {f"{owner['name']}.reserved": owner["reservedRange"] for owner, _ in owners if "reservedRange" in owner}


def test_served_descriptors_are_public(public: dict[str, _Descriptor]) -> None:
    """Each served file, message, field, enum and method has the public API's name, number, type, limits and path."""
    served = _served()
    assert served.keys() == public.keys()
    assert {name: file["package"] for name, file in served.items()} == {name: file["package"] for name, file in public.items()}
    ours, theirs = _members(served), _members(public)
    theirs["Backup.id"].pop("options")  # "required", which has no meaning in a response
    assert ours == {name: theirs[name] for name in ours}


def test_served_messages_are_complete(public: dict[str, _Descriptor]) -> None:
    """Each served message has every public field, and each service has every public method except those that change data."""
    ours, theirs = _members(_served()), _members(public)
    messages = {name.partition(".")[0] for name in ours} - {"ClusterService"}
    missing = {name for name in theirs.keys() - ours.keys() if name.partition(".")[0] in messages}
    assert missing == {"BackupService.Delete"}


def test_only_one_method_of_clusters() -> None:
    """The cluster service declares ListBackups and no other method."""
    assert [method.name for method in pb.CLUSTER_DESCRIPTOR.services_by_name["ClusterService"].methods] == ["ListBackups"]
