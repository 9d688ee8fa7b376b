"""Unknown variables `BACKUPS_...`: misspelt ones are errors, others are warnings."""

import pytest

from service.errors import InvalidSettings
from service.setting_names import check_names, known_names
from service.settings import Settings

_KNOWN = known_names(Settings.model_fields)


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("BACKUPS_TLS_CLIENTCA", "BACKUPS_TLS_CLIENT_CA"),
        ("BACKUPS_TLS_CERTIFICATE_FILE", "BACKUPS_TLS_CERT"),
        ("BACKUPS_AUTHENTICATION", "BACKUPS_AUTH"),
        ("BACKUPS_JWT_AUD", "BACKUPS_JWT_AUDIENCE"),
        ("BACKUPS_ALLOW_ANON", "BACKUPS_ALLOW_ANONYMOUS"),
        ("BACKUPS_LISTN", "BACKUPS_LISTEN"),
        ("BACKUPS_DATABSE_ULR", None),
        ("BACKUPS_POOLSIZE", "BACKUPS_POOL_SIZE"),
        ("BACKUPS_TOKN", "BACKUPS_TOKEN"),
    ],
)
def test_misspelt_names(name: str, nearest: str | None) -> None:
    """A name that is nearly a known one, or that would turn a protection on, is rejected with the nearest known name."""
    if nearest is None:  # three edits
        assert check_names([name], _KNOWN) == [f"{name} is not a setting, and is ignored"]
        return
    with pytest.raises(InvalidSettings) as caught:
        check_names([name], _KNOWN)
    assert str(caught.value) == f"{name} is not a setting: the nearest one is {nearest}"


def test_every_misspelt_name_is_reported() -> None:
    """Several misspelt names are reported together, a line each."""
    with pytest.raises(InvalidSettings) as caught:
        check_names(["BACKUPS_TLS_X", "PATH", "BACKUPS_LISTEM", "BACKUPS_LISTEN"], _KNOWN)
    assert [line.split()[0] for line in str(caught.value).splitlines()] == ["BACKUPS_LISTEM", "BACKUPS_TLS_X"]


def test_other_unknown_names() -> None:
    """Any other unknown name is a warning."""
    assert check_names(["BACKUPS_RETENTION_POLICY"], _KNOWN) == ["BACKUPS_RETENTION_POLICY is not a setting, and is ignored"]


@pytest.mark.parametrize(
    "name",
    [
        "SERVICE_HOST",
        "SERVICE_PORT",
        "SERVICE_PORT_GRPC",
        "PORT",
        "PORT_50051_TCP",
        "PORT_50051_TCP_ADDR",
        "ENVOY_SERVICE_HOST",
        "TLS_PORT",
    ],
)
def test_service_links(name: str) -> None:
    """The variables that Kubernetes sets for Services are ignored."""
    assert check_names([f"BACKUPS_{name}"], _KNOWN) == []
