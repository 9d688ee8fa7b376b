"""Where official clients look first: the addresses of the services that they ask.

Needs neither database nor token: a client asks before it has one. Served where a public address is set, and nowhere else: a server does
not know under which name its clients reach it, and an empty list would make them fail on a missing id, where UNIMPLEMENTED says what it is.
"""

from service import pb
from service.errors import ApiEndpointNotFound

# `iam` is needed even by clients that bring a token: they look its address up before they use any other.
_IDS = ("iam", "managed-greenplum")


class ApiEndpointService(pb.ApiEndpointServiceServicer):
    """Everything is at one address."""

    def __init__(self, address: str) -> None:
        self._endpoints = {each: pb.ApiEndpoint(id=each, address=address) for each in _IDS}

    async def Get(self, request: pb.GetApiEndpointRequest, context: object) -> pb.ApiEndpoint:
        """One endpoint."""
        try:
            return self._endpoints[request.api_endpoint_id]
        except KeyError:
            raise ApiEndpointNotFound(request.api_endpoint_id) from None

    async def List(self, request: pb.ListApiEndpointsRequest, context: object) -> pb.ListApiEndpointsResponse:
        """All endpoints, whatever page is asked for, as the public API does."""
        return pb.ListApiEndpointsResponse(endpoints=self._endpoints.values())
