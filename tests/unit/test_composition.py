"""Servers that are built from settings which nothing has checked."""

import pytest
from pydantic import SecretStr

from service.composition import build_server
from service.errors import InvalidSettings
from service.settings import Settings

_URL = SecretStr("postgresql://u@127.0.0.1:1/d?sslmode=disable")
_JWT = {"jwks": "/nowhere/jwks.json", "jwt_issuer": "issuer", "jwt_audience": "audience"}


@pytest.mark.parametrize("missing", _JWT)
async def test_no_server_without_a_part_of_the_authentication(missing: str) -> None:
    """If a part of the authentication is missing, no server is built: it would answer every client."""
    settings = Settings.read(database_url=_URL, auth="jwt", **_JWT).model_copy(update={missing: None})
    with pytest.raises(InvalidSettings, match=r"^BACKUPS_AUTH=jwt needs BACKUPS_JWKS, BACKUPS_JWT_ISSUER and BACKUPS_JWT_AUDIENCE$"):
        await build_server(settings)


@pytest.mark.parametrize("present", ["tls_cert", "tls_key", "tls_client_ca"])
async def test_no_server_without_a_part_of_tls(present: str) -> None:
    """If only one of the files of TLS is set, no server is built: it would listen in plaintext."""
    settings = Settings.read(database_url=_URL).model_copy(update={present: "/nowhere/file.pem"})
    with pytest.raises(InvalidSettings, match=r"^BACKUPS_TLS_CERT and BACKUPS_TLS_KEY are needed"):
        await build_server(settings)
