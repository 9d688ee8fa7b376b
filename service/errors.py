"""All expected errors. The docstring of an error is its default message for logs and commands; its attributes are facts, not status codes.

Error
├── RequestError                answers a call (statuses: service/api/error_status.py)
│   ├── InvalidRequest              violations
│   │   └── InvalidPageToken
│   ├── UndecodableRequest
│   ├── BackupNotFound              backup_id
│   ├── ApiEndpointNotFound         api_endpoint_id
│   ├── UnknownService              name
│   ├── TooManyWatchers
│   ├── Unauthenticated             reason
│   ├── Forbidden
│   ├── KeysUnavailable
│   ├── Overloaded
│   ├── ShuttingDown
│   ├── DeadlineExceeded
│   ├── CallInterrupted
│   └── CatalogUnavailable
├── ConnectFailed               no connection to PostgreSQL can be opened
├── TracingUnavailable          the server starts without traces
├── InvalidEntry                entry, field, reason: an entry of a listing cannot be a backup
├── InvalidJwks                 a document is not a JWKS; the previous keys stay in use
└── CommandError                the command prints one line to standard error, and exits with 1
    ├── InvalidSettings
    ├── PortTaken
    ├── InvalidIdPrefix             prefix, limit
    ├── InvalidTimeZone             name
    ├── InvalidListing              the input is not a listing of this tool
    ├── ImportRejected
    ├── RemovalRejected
    ├── CatalogNotWritable
    ├── SchemaError
    ├── EmbeddedPostgresError
    └── CallFailed                  the service returned an error to this command
"""

from typing import Literal, NamedTuple, TypeAlias


class Error(Exception):
    """Base class of all expected errors."""

    def __str__(self) -> str:
        return super().__str__() or (type(self).__doc__ or "")


class RequestError(Error):
    """The call cannot be answered."""


class Violation(NamedTuple):
    """A field of a request that violates the contract, and its limit. It contains no value from the request."""

    field: str
    description: str


class InvalidRequest(RequestError):
    """The request violates limits of the API."""

    def __init__(self, violations: list[Violation]) -> None:
        super().__init__()
        self.violations = violations


class InvalidPageToken(InvalidRequest):
    """The page token does not belong to this list."""

    def __init__(self) -> None:
        super().__init__([Violation("page_token", "Must be the next_page_token of an earlier response for the same folder or cluster.")])


class UndecodableRequest(RequestError):
    """The request is not a valid message of this method."""


class BackupNotFound(RequestError):
    """The backup does not exist, or the caller may not read it."""

    def __init__(self, backup_id: str) -> None:
        super().__init__()
        self.backup_id = backup_id


class ApiEndpointNotFound(RequestError):
    """The endpoint does not exist."""

    def __init__(self, api_endpoint_id: str) -> None:
        super().__init__()
        self.api_endpoint_id = api_endpoint_id


class UnknownService(RequestError):
    """No service has this name."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name


class TooManyWatchers(RequestError):
    """The maximum number of open calls of `Watch` is reached."""


Rejection: TypeAlias = Literal[
    "missing",  # no authorization header
    "malformed",  # more than one header, not a bearer token, too long, not a JWT
    "type",  # `typ` names another kind of JWT
    "key",  # no key has this `kid`
    "algorithm",  # `alg` is not the key's
    "signature",
    "expired",
    "early",  # `nbf` or `iat` is in the future
    "lifetime",  # `exp` is too far in the future
    "issuer",
    "audience",
    "claims",  # a claim is missing or has a wrong type
    "certificate",  # the client certificate has none of the accepted names
    "unexpected",  # verification failed with an error that has no row here
]
"""Reason why credentials are rejected, for logs and metrics. Clients do not receive it."""


class Unauthenticated(RequestError):
    """The credentials of the call are missing or invalid."""

    def __init__(self, reason: Rejection) -> None:
        super().__init__()
        self.reason: Rejection = reason


class Forbidden(RequestError):
    """The caller may not read this folder."""


class KeysUnavailable(RequestError):
    """Credentials cannot be verified now: the signing keys are missing or too old."""


class Overloaded(RequestError):
    """The admission limit is reached."""


class ShuttingDown(RequestError):
    """The server is shutting down."""


class DeadlineExceeded(RequestError):
    """The call took longer than its client, or this server, allows."""


class CallInterrupted(RequestError):
    """The call was cancelled by this server, not by its client."""


class CatalogUnavailable(RequestError):
    """The catalog cannot be read."""


class ConnectFailed(Error):
    """No connection to PostgreSQL can be opened."""


class TracingUnavailable(Error):
    """Traces cannot be exported."""


class InvalidEntry(Error):
    """An entry of a listing has a value that a backup cannot have."""

    def __init__(self, entry: str, field: str, reason: str) -> None:
        super().__init__(f"{entry}: {field}: {reason}")
        self.entry, self.field, self.reason = entry, field, reason


class InvalidJwks(Error):
    """The document is not a JWKS."""

    def __init__(self, problem: str) -> None:
        super().__init__(f"The JWKS cannot be used: {problem}.")


class CommandError(Error):
    """The command failed."""


class InvalidSettings(CommandError):
    """A setting has a value that cannot be used."""


class PortTaken(CommandError):
    """The address to listen on is in use."""


class InvalidIdPrefix(CommandError):
    """The ids of backups cannot begin with this prefix."""

    def __init__(self, prefix: str, *, limit: int) -> None:
        super().__init__(
            f"ids cannot begin with {prefix!a}: a prefix has 1 to {limit} printable ASCII characters without space, "
            "because an id has at most 50. The default is the cluster's id. Pass another prefix to --id-prefix"
        )
        self.prefix, self.limit = prefix, limit


class InvalidTimeZone(CommandError):
    """The time zone does not exist."""

    def __init__(self, name: str) -> None:
        super().__init__(f"{name!a} is not a time zone: pass the coordinator's to --timezone, such as Europe/Berlin or Etc/UTC")
        self.name = name


class InvalidListing(CommandError):
    """The input is not a listing of this tool."""


class ImportRejected(CommandError):
    """The import would make a change that no option allows."""


class RemovalRejected(CommandError):
    """The catalog has no rows of this cluster, or they changed after the preview."""


class CatalogNotWritable(CommandError):
    """BACKUPS_DATABASE_URL does not give write access to the catalog: its role is not that of imports, or its server is a standby."""


class SchemaError(CommandError):
    """The schema of the database cannot be changed to the requested revision."""


class EmbeddedPostgresError(CommandError):
    """The embedded PostgreSQL cannot be used."""


class CallFailed(CommandError):
    """The service returned an error."""
