"""The names that a client's certificate may have. gRPC has verified the certificate itself by then (transport/certificate.py)."""

from typing import Any

from grpc.aio import ServicerContext

from service.errors import Unauthenticated


class ClientNames:
    """Accepted DNS names and URIs (subject alternative names) of client certificates."""

    def __init__(self, names: frozenset[str] | None) -> None:
        """
        Args:
            names: DNS names in lower case, and URIs; None accepts every certificate.
        """
        self._names = names

    def require(self, context: ServicerContext[Any, Any]) -> None:
        """Check the client certificate of the call's connection.

        Raises:
            Unauthenticated: the certificate has none of the names.
        """
        if self._names is not None and self._names.isdisjoint(_names_of(context)):
            raise Unauthenticated("certificate")


ANY_NAME = ClientNames(None)


def _names_of(context: ServicerContext[Any, Any]) -> set[str]:
    # `x509_subject_alternative_name` would not separate names from e-mail and IP addresses.
    found: Any = context.auth_context()
    names = {name.decode(errors="replace").lower() for name in found.get("peer_dns", [])}
    return names | {uri.decode(errors="replace") for uri in found.get("peer_uri", [])}
