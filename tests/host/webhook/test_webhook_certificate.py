"""The webhook's CA and certificate: when they are made anew, and that nothing shown is ever untrusted."""

import base64
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509

from cloudprovider.bridge.certificates import KeyPair
from cloudprovider.bridge.inspection import end_of
from cloudprovider.host.webhookcertificate import Lives, Material, data_of, read, renewed

NOW = datetime(2026, 1, 1, tzinfo=UTC)
DAY = timedelta(days=1)
HOSTS = ("webhook.system.svc", "127.0.0.1")
LIVES = Lives(ca=3000 * DAY, serving=90 * DAY)


def renew(material: Material | None, after: timedelta, hosts: Sequence[str] = HOSTS) -> Material:
    return renewed(material, hosts, now=NOW + after, lives=LIVES)


def trusted(material: Material) -> bool:
    """Whether one of the bundle's CAs has signed what is shown."""
    shown = x509.load_pem_x509_certificate(material.serving.certificate)
    for authority in x509.load_pem_x509_certificates(material.bundle):
        try:
            shown.verify_directly_issued_by(authority)
        except Exception:  # noqa: BLE001, S112 - whichever reason there is
            continue
        return True
    return False


@pytest.fixture(scope="module")
def first() -> Material:
    return renew(None, timedelta())


def test_the_first_has_the_names_that_are_called(first: Material) -> None:
    shown = x509.load_pem_x509_certificate(first.serving.certificate)
    names = shown.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["webhook.system.svc"]
    assert [str(a) for a in names.get_values_for_type(x509.IPAddress)] == ["127.0.0.1"]
    assert end_of(first.serving) == NOW + 90 * DAY
    assert trusted(first)


def test_a_secret_holds_all_of_it(first: Material) -> None:
    assert read(data_of(first)) == first
    assert set(data_of(first)) == {"ca.crt", "ca.key", "tls.crt", "tls.key"}


def test_nothing_is_done_before_two_thirds_of_the_life(first: Material) -> None:
    assert renew(first, 60 * DAY - timedelta(seconds=1)) is first
    assert renew(first, timedelta(), ("127.0.0.1",)) is first, "more names than are called do no harm"


def test_the_certificate_is_renewed_by_the_same_ca(first: Material) -> None:
    second = renew(first, 60 * DAY)
    assert second.ca == first.ca
    assert second.bundle == first.bundle
    assert end_of(second.serving) == NOW + 150 * DAY
    assert trusted(second)


def test_another_name_makes_another_certificate(first: Material) -> None:
    second = renew(first, DAY, ("webhook.other.svc",))
    assert second.ca == first.ca
    assert second.serving != first.serving


def test_the_old_ca_is_trusted_until_it_ends(first: Material) -> None:
    """And nothing else is shown at the moment when the CA changes."""
    fresh = renew(first, 1999 * DAY)
    turned = renew(fresh, 2000 * DAY)
    assert turned.ca != fresh.ca
    assert turned.serving == fresh.serving
    assert turned.bundle == turned.ca.certificate + first.ca.certificate
    assert trusted(turned)
    later = renew(turned, 2059 * DAY)
    assert later.serving != turned.serving
    assert later.bundle == turned.bundle
    assert trusted(Material(later.ca, b"", later.serving)), "the new CA has signed it"
    again = renew(later, 4000 * DAY)  # the next turn: the first CA has ended
    assert first.ca.certificate not in again.bundle
    assert later.ca.certificate in again.bundle


def test_years_of_daily_looks_never_leave_it_untrusted_or_expired() -> None:
    lives = Lives(ca=30 * DAY, serving=6 * DAY)
    material: Material | None = None
    authorities, certificates = set(), set()
    for hour in range(0, 120 * 24, 12):
        now = NOW + timedelta(hours=hour)
        before = material
        material = renewed(material, HOSTS, now=now, lives=lives)
        assert end_of(material.serving) > now + DAY
        assert trusted(material)
        assert len(x509.load_pem_x509_certificates(material.bundle)) <= 2
        if before is not None:
            # Another copy that shows the one before is trusted just as well.
            assert trusted(Material(material.ca, material.retired, before.serving))
        authorities.add(material.ca.certificate)
        certificates.add(material.serving.certificate)
    assert len(authorities) == 6  # 120 days, one each 20
    assert 29 <= len(certificates) <= 31


def test_a_program_that_was_away_for_years_makes_both_anew(first: Material) -> None:
    back = renew(first, 5000 * DAY)
    assert back.ca != first.ca
    assert first.ca.certificate not in back.bundle
    assert trusted(back)


def test_a_ca_too_short_lived_for_the_next_certificate_is_renewed_with_it() -> None:
    lives = Lives(ca=100 * DAY, serving=90 * DAY)
    old = renewed(None, HOSTS, now=NOW, lives=lives)
    new = renewed(old, HOSTS, now=NOW + 60 * DAY, lives=lives)
    assert end_of(new.serving) == NOW + 150 * DAY
    assert new.ca != old.ca
    assert trusted(new)


def text(pem: bytes) -> str:
    return base64.b64encode(pem).decode()


@pytest.mark.parametrize("key", ["ca.crt", "ca.key", "tls.crt", "tls.key"])
@pytest.mark.parametrize("value", [None, "", "***", text(b"nonsense")])
def test_what_is_unusable_is_nothing(first: Material, key: str, value: str | None) -> None:
    data = data_of(first)
    if value is None:
        del data[key]
    else:
        data[key] = value
    assert read(data) is None


def test_keys_of_others_are_unusable(first: Material) -> None:
    other = renew(None, timedelta())
    swapped = Material(KeyPair(first.ca.certificate, other.ca.key), b"", first.serving)
    assert read(data_of(swapped)) is None
    swapped = Material(first.ca, b"", KeyPair(first.serving.certificate, other.serving.key))
    assert read(data_of(swapped)) is None


def test_a_certificate_of_an_unknown_ca_is_replaced(first: Material) -> None:
    other = renew(None, timedelta())
    mixed = Material(first.ca, b"", other.serving)
    mended = renew(mixed, DAY)
    assert mended.ca == first.ca
    assert trusted(mended)
