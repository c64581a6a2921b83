"""The tenants' CA: what a Secret holds of it, what it signs, and how one follows another. No clock, no API server."""

import base64
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.verification import PolicyBuilder, Store

from cloudprovider.bridge import authority
from cloudprovider.bridge.api import PeerCertificate, Reason
from cloudprovider.bridge.authority import Authority
from cloudprovider.bridge.certificates import KeyPair, issue_server, issue_tenant, make_ca, make_request
from cloudprovider.bridge.inspection import belongs, certificates, end_of, names_of, uris_of
from cloudprovider.core.errors import BridgeError, ConfigurationError, InvalidRequest
from tests.bridge.tls import DAY, DOMAIN, TENANT

NOW = datetime(2026, 1, 10, tzinfo=UTC)
PEER = PeerCertificate(TENANT, "ab" * 32, NOW - 60 * DAY, NOW + 30 * DAY, DOMAIN)
URI = "spiffe://harvester.local/ns/tenants/cluster/blue"
WHERE = "Secret system/ca"


@pytest.fixture(scope="module")
def ca() -> Authority:
    return authority.make(NOW - 100 * DAY)


def test_a_secret_and_back(ca: Authority) -> None:
    assert authority.read(authority.data_of(ca), WHERE) == ca
    two = authority.replaced(ca, NOW)
    assert authority.read(authority.data_of(two), WHERE) == two


def test_a_secret_of_cert_manager_will_do(ca: Authority) -> None:
    data = {k: v for k, v in authority.data_of(ca).items() if k in ("tls.crt", "tls.key")}
    assert authority.read(data, WHERE) == ca
    assert authority.read(data | {"ca.crt": data["tls.crt"]}, WHERE) == ca


DAMAGES: dict[str, tuple[Callable[[dict[str, str]], object], str]] = {
    "no key": (lambda d: d.pop("tls.key"), "lacks tls.key"),
    "no certificate": (lambda d: d.pop("tls.crt"), "lacks tls.crt"),
    "garbage": (lambda d: d.update({"tls.crt": "bm90aGluZw=="}), "no CA that can be read"),
    "not base64": (lambda d: d.update({"ca.crt": "%"}), "no CA that can be read"),
    "another key": (
        lambda d: d.update({"tls.key": authority.data_of(authority.make(NOW))["tls.key"]}),
        "does not belong to its certificate",
    ),
}


@pytest.mark.parametrize(("damage", "says"), DAMAGES.values(), ids=DAMAGES.keys())
def test_a_damaged_one_is_told_in_one_sentence(
    ca: Authority, damage: Callable[[dict[str, str]], object], says: str
) -> None:
    data = authority.data_of(ca)
    damage(data)
    with pytest.raises(ConfigurationError, match=says) as e:
        authority.read(data, WHERE)
    assert str(e.value).startswith(WHERE)
    assert "\n" not in str(e.value)


def test_a_renewed_certificate_is_the_presenters_whatever_the_request_says(ca: Authority) -> None:
    key = greedy_request("CN=somebody else", "spiffe://harvester.local/ns/tenants/cluster/green")
    issued = authority.renew(ca, PEER, key.certificate, now=NOW, not_before=None)
    new = KeyPair(issued.certificate, key.key)
    assert belongs(new)
    assert uris_of(new) == {URI}
    (leaf,) = certificates(new.certificate)
    assert leaf.not_valid_after_utc - NOW == 90 * DAY, "as long a life as the one before"
    assert leaf.not_valid_before_utc < NOW, "the other side's clock may be late"
    assert issued.authorities == ca.trusted
    store = Store(list(certificates(issued.authorities)))
    verified = PolicyBuilder().store(store).time(NOW).build_client_verifier().verify(leaf, [])
    assert [name.value for name in verified.subjects or ()] == [URI]


def greedy_request(subject: str, uri: str) -> KeyPair:
    """A request that asks for more than it may have."""
    plain = make_request()
    key = serialization.load_pem_private_key(plain.key, password=None)
    names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri)])
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    request = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(x509.Name.from_rfc4514_string(subject))
        .add_extension(names, critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    return KeyPair(request.public_bytes(serialization.Encoding.PEM), plain.key)


def rsa_request() -> bytes:
    key = rsa.generate_private_key(65537, 2048)
    request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key, hashes.SHA256())
    return request.public_bytes(serialization.Encoding.PEM)


def forged() -> bytes:
    """A request for a key that its sender does not have: the signature is another one's."""
    theirs, mine = (x509.load_pem_x509_csr(make_request().certificate) for _ in range(2))
    der = theirs.public_bytes(serialization.Encoding.DER)
    changed = der.replace(theirs.signature, mine.signature)
    if len(changed) != len(der):  # DER signatures differ in length now and then
        changed = der[:-1] + bytes([der[-1] ^ 1])
    lines = base64.encodebytes(changed).decode()
    return f"-----BEGIN CERTIFICATE REQUEST-----\n{lines}-----END CERTIFICATE REQUEST-----\n".encode()


@pytest.mark.parametrize("make", [lambda: b"nothing", rsa_request, forged])
def test_what_is_no_request_of_its_own_key_is_refused(ca: Authority, make: Callable[[], bytes]) -> None:
    with pytest.raises(InvalidRequest, match="no certificate request"):
        authority.renew(ca, PEER, make(), now=NOW, not_before=None)


def test_none_is_signed_that_a_revocation_would_take_back(ca: Authority) -> None:
    revoked = NOW - timedelta(minutes=1, microseconds=1)
    issued = authority.renew(ca, PEER, make_request().certificate, now=NOW, not_before=revoked)
    assert certificates(issued.certificate)[0].not_valid_before_utc == NOW - timedelta(minutes=1)


def test_a_host_without_the_key_says_so() -> None:
    with pytest.raises(BridgeError, match="cloudprovider tenant rotate") as e:
        authority.renew(None, PEER, b"", now=NOW, not_before=None)
    assert (e.value.reason, e.value.retryable) == (Reason.RENEWAL_NOT_OFFERED, False)


def test_nothing_outlives_the_ca() -> None:
    short = authority.of(make_ca("short", now=NOW - DAY, validity=60 * DAY))
    request = make_request().certificate
    issued = authority.renew(short, PEER, request, now=NOW, not_before=None)
    assert certificates(issued.certificate)[0].not_valid_after_utc == end_of(short.signing)
    with pytest.raises(BridgeError, match="replace-ca"):
        authority.renew(short, replace(PEER, not_after=NOW + 59 * DAY), request, now=NOW, not_before=None)


def shown_by(ca: KeyPair, made: datetime) -> KeyPair:
    return issue_server(ca, ["192.0.2.1", "bridge.example"], now=made, validity=90 * DAY)


def test_the_bridges_own_is_renewed_at_two_thirds_of_its_life(ca: Authority) -> None:
    assert authority.renewed(shown_by(ca.signing, NOW - 59 * DAY), ca, NOW) is None
    shown = shown_by(ca.signing, NOW - 61 * DAY)
    new = authority.renewed(shown, ca, NOW)
    assert new is not None
    assert names_of(new) == {"192.0.2.1", "bridge.example"}
    assert end_of(new) - NOW >= 90 * DAY


def test_one_ca_follows_another(ca: Authority) -> None:
    """Whoever trusts only what was said before can go on at each step."""
    shown = shown_by(ca.signing, NOW)
    client = issue_tenant(ca.signing, TENANT, DOMAIN, now=NOW, validity=DAY)
    two = authority.replaced(ca, NOW)
    assert authority.is_being_replaced(two)
    assert set(certificates(ca.trusted)) < set(certificates(two.trusted))
    assert authority.renewed(shown, two, NOW) is None, "guests trust the old one only"
    signed = authority.renew(two, PEER, make_request().certificate, now=NOW, not_before=None)
    (leaf,) = certificates(signed.certificate)
    leaf.verify_directly_issued_by(certificates(two.signing.certificate)[0])
    assert set(certificates(signed.authorities)) == set(certificates(two.trusted))
    one = authority.settled(two)
    assert not authority.is_being_replaced(one)
    assert set(certificates(one.trusted)) == set(certificates(one.signing.certificate))
    new = authority.renewed(shown, one, NOW)
    assert new is not None
    certificates(new.certificate)[0].verify_directly_issued_by(certificates(one.trusted)[0])
    with pytest.raises(InvalidSignature):
        certificates(client.certificate)[0].verify_directly_issued_by(certificates(one.trusted)[0])
