"""Certificates that tests make."""

from ipaddress import ip_address

import pytest
from cryptography import x509
from cryptography.x509.verification import PolicyBuilder, Store

from tests.support.certificates import Authority


@pytest.mark.parametrize(
    "subject", [x509.DNSName("db.example"), x509.IPAddress(ip_address("127.0.0.2")), x509.IPAddress(ip_address("::1"))]
)
def test_a_certificate_is_valid_for_each_of_its_names(subject: x509.DNSName | x509.IPAddress) -> None:
    """A strict verifier accepts a certificate for each DNS name and IP address that it was made for."""
    authority = Authority()
    pair = authority.pair("server", alternative_names=["db.example", "127.0.0.2", "::1", "spiffe://example/server"])
    verifier = PolicyBuilder().store(Store([x509.load_pem_x509_certificate(authority.cert)])).build_server_verifier(subject)

    chain = verifier.verify(x509.load_pem_x509_certificate(pair.cert), [])

    assert len(chain) == 2
