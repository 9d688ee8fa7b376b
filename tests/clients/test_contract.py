"""What is served, against what the official client knows of it."""

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

# What the public API has gained since, and this service does not serve.
_SINCE = {
    "Backup.type": 7,
    "Backup.method": 8,
    "Backup.journal_size": 9,
    "Backup.shared_size": 11,
    "BackupService.Delete": None,
}


@pytest.fixture(name="theirs", scope="module")
def _theirs() -> dict[str, _Descriptor]:
    python, _ = command("python")
    done = subprocess.run(
        [python, str(HERE / "python" / "describe.py")], env={"PATH": os.defpath}, capture_output=True, check=True, timeout=60
    )
    files: dict[str, _Descriptor] = json.loads(done.stdout)
    return files


def _ours() -> dict[str, _Descriptor]:
    files = {}
    for descriptor in (
        pb.Backup.DESCRIPTOR.file, pb.DESCRIPTOR, pb.ApiEndpoint.DESCRIPTOR.file, pb.ListApiEndpointsRequest.DESCRIPTOR.file,
    ):  # fmt: skip
        file = FileDescriptorProto()
        descriptor.CopyToProto(file)
        files[file.name] = MessageToDict(file)
    return files


def _members(files: dict[str, _Descriptor]) -> dict[str, _Descriptor]:
    """Every field and method, by `Message.field` or `Service.Method`, with all that is declared of it."""
    return {
        f"{owner['name']}.{member['name']}": member
        for file in files.values()
        for kind, inner in [("messageType", "field"), ("service", "method")]
        for owner in file.get(kind, [])
        for member in owner.get(inner, [])
        if not owner["name"].startswith("DeleteBackup")
    }


def test_all_that_is_served_is_the_public_apis(theirs: dict[str, _Descriptor]) -> None:
    """Each file, message, field and method has the public API's name, number, type, limits and path; the rest of the API is known."""
    ours = _ours()
    assert ours.keys() == theirs.keys()
    assert {name: file["package"] for name, file in ours.items()} == {name: file["package"] for name, file in theirs.items()}
    served, public = _members(ours), _members(theirs)
    public["Backup.id"].pop("options")  # says that it is required, of an answer
    assert served == {name: public[name] for name in served}
    assert {name: public[name].get("number") for name in public.keys() - served.keys()} == _SINCE
