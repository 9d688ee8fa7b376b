"""`ApiEndpointService`: addresses of the services, which official clients look up first.

It needs neither the database nor a token, because clients call it before they have a token. It is served only if a public address is set,
because the server does not know the name by which clients reach it. Otherwise clients fail with UNIMPLEMENTED. With an empty list, they
would fail with an error about a missing id.
"""

from service import pb
from service.errors import ApiEndpointNotFound

# Clients look up `iam` before anything else, even if they already have a token.
_IDS = ("iam", "managed-greenplum")


class ApiEndpointService(pb.ApiEndpointServiceServicer):
    """The same address for every service."""

    def __init__(self, address: str) -> None:
        self._endpoints = {each: pb.ApiEndpoint(id=each, address=address) for each in _IDS}

    async def Get(self, request: pb.GetApiEndpointRequest, context: object) -> pb.ApiEndpoint:
        """Return one endpoint.

        Raises:
            ApiEndpointNotFound: no service has this id.
        """
        try:
            return self._endpoints[request.api_endpoint_id]
        except KeyError:
            raise ApiEndpointNotFound(request.api_endpoint_id) from None

    async def List(self, request: pb.ListApiEndpointsRequest, context: object) -> pb.ListApiEndpointsResponse:
        """Return all endpoints. The page size and token are ignored, as in the public API."""
        return pb.ListApiEndpointsResponse(endpoints=self._endpoints.values())
