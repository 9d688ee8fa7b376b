"""Comparison of responses: each peer has to return what the service returns before their speed is compared."""

import random
from collections.abc import Iterator
from typing import Any

import grpc

from bench.catalog import DEEP_FOLDER, Catalog
from bench.systems import System
from service import pb

_SAMPLES = 10
_PAGES = 3  # of each folder
_SIZES = (0, 100, 1000)


def check_responses(systems: list[System], catalog: Catalog) -> int:
    """Compare the responses of all systems byte for byte. The first system is the service. Return the number of compared responses.

    Page tokens are opaque and differ, so they are followed and not compared.

    Raises:
        RuntimeError: a system returns another response than the service.
    """
    ids = [*random.sample(catalog.ids, min(_SAMPLES, len(catalog.ids))), "absent"]
    folders = [*random.sample(catalog.folders, min(_SAMPLES, len(catalog.folders))), DEEP_FOLDER, "absent"]
    expected = dict(_responses(systems[0], ids, folders))
    for system in systems[1:]:
        for request, response in _responses(system, ids, folders):
            if response != expected[request]:
                raise RuntimeError(f"{system.name} and {systems[0].name} return different responses to {request}")
    return len(expected)


def _responses(system: System, ids: list[str], folders: list[str]) -> Iterator[tuple[str, bytes | grpc.StatusCode]]:
    """Yield a description of each request, and its response or status."""
    with grpc.insecure_channel(system.address) as channel:
        get: Any = channel.unary_unary(f"/{pb.BACKUP_SERVICE}/Get")
        for id_ in ids:
            try:
                yield f"Get {id_}", get(pb.GetBackupRequest(backup_id=id_).SerializeToString())
            except grpc.RpcError as error:
                yield f"Get {id_}", error.code()
        for folder in folders:
            for size in _SIZES:
                yield from _pages(channel, folder, size)


def _pages(channel: grpc.Channel, folder: str, size: int) -> Iterator[tuple[str, bytes]]:
    """Yield the first pages of a folder without their tokens, each with its description."""
    list_: Any = channel.unary_unary(f"/{pb.BACKUP_SERVICE}/List")
    token = ""
    for number in range(1, _PAGES + 1):
        request = pb.ListBackupsRequest(folder_id=folder, page_size=size, page_token=token)
        response: bytes = list_(request.SerializeToString())
        token = pb.ListBackupsResponse.FromString(response).next_page_token
        end = pb.ListBackupsResponse(next_page_token=token).SerializeToString()
        # The token is the last field. A response with another order of fields differs from the service's.
        yield f"List {folder}, page {number} of {size}, {'' if token else 'not '}continued", response.removesuffix(end)
        if not token:
            break
