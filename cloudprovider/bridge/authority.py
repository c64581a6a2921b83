"""The tenants' CA as a Secret holds it: what it signs, and whom it has both sides trust.

A CA is replaced in two steps. First the new one signs tenants' certificates while both are trusted, and the bridge goes
on showing a certificate of the old one, which every guest trusts: each hears of the new one, trusts it, and has its own
certificate renewed by it. When all have, the old one is dropped, and the bridge's certificate is of the new one too.
The Secret and the files of a bridge that runs differ for a while: guests are told what holds by the files.

The keys ``tls.crt``, ``tls.key`` and ``ca.crt`` are those of a Secret of cert-manager, whose CA may thus stand here.
"""

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from cryptography.exceptions import UnsupportedAlgorithm

from cloudprovider.bridge.api import IssuedCertificate, PeerCertificate, Reason
from cloudprovider.bridge.certificates import KeyPair, issue_server, make_ca, sign_request
from cloudprovider.bridge.inspection import belongs, certificates, end_of, is_due, is_signed_by, names_of, pem_of
from cloudprovider.core.errors import BridgeError, ConfigurationError

CA_NAME: Final = "cloudprovider tenants"
CA_VALIDITY: Final = timedelta(days=3650)
CERTIFICATE: Final = "tls.crt"
KEY: Final = "tls.key"
TRUSTED: Final = "ca.crt"
_SERVING: Final = "serving.crt"
_SERVING_KEY: Final = "serving.key"


@dataclass(frozen=True, slots=True)
class Authority:
    """``signing`` signs tenants' certificates, ``serving`` the bridge's: the same CA, but while one is being replaced.
    ``trusted``: all that both sides are to trust, PEM."""

    signing: KeyPair
    trusted: bytes
    serving: KeyPair


def of(ca: KeyPair) -> Authority:
    """Return the authority that is one CA."""
    return Authority(ca, ca.certificate, ca)


def make(now: datetime) -> Authority:
    """Return a new one."""
    return of(make_ca(CA_NAME, now=now, validity=CA_VALIDITY))


def read(data: Mapping[str, str], where: str) -> Authority:
    """Return what a Secret's ``data`` (base64) holds; ``where`` names it. Raises ConfigurationError."""
    try:
        pem = {name: base64.b64decode(value, validate=True) for name, value in data.items()}
        signing = KeyPair(pem[CERTIFICATE], pem[KEY])
        serving = KeyPair(pem[_SERVING], pem[_SERVING_KEY]) if _SERVING in pem else signing
        trusted = [*certificates(signing.certificate), *certificates(pem.get(TRUSTED) or signing.certificate)]
        fine = belongs(signing) and belongs(serving)
    except KeyError as e:
        raise ConfigurationError(
            f"{where} lacks {e.args[0]}: put the CA back whole, or delete it and issue all anew"
        ) from e
    except (ValueError, TypeError, binascii.Error, UnsupportedAlgorithm) as e:
        raise ConfigurationError(f"{where} holds no CA that can be read (PEM, unencrypted key): {e}") from e
    if not fine:
        raise ConfigurationError(f"{where}: the CA's key does not belong to its certificate: put the CA back whole")
    return Authority(signing, pem_of(list(dict.fromkeys(trusted))), serving)


def data_of(authority: Authority) -> dict[str, str]:
    """Return what a Secret is to hold, in base64."""
    parts = {CERTIFICATE: authority.signing.certificate, KEY: authority.signing.key, TRUSTED: authority.trusted}
    if authority.serving != authority.signing:
        parts |= {_SERVING: authority.serving.certificate, _SERVING_KEY: authority.serving.key}
    return {name: base64.b64encode(value).decode() for name, value in parts.items()}


def is_being_replaced(authority: Authority) -> bool:
    """Whether there are two CAs at present."""
    return authority.serving != authority.signing


def as_shown(authority: Authority, trusted: bytes) -> Authority:
    """Return what counts while the bridge trusts ``trusted`` (PEM): it signs by no CA that the bridge does not know."""
    known = certificates(authority.signing.certificate)[0] in certificates(trusted)
    return Authority(authority.signing if known else authority.serving, trusted, authority.serving)


def replaced(authority: Authority, now: datetime) -> Authority:
    """Return the first step to a new CA."""
    ca = make_ca(CA_NAME, now=now, validity=CA_VALIDITY)
    return Authority(ca, ca.certificate + authority.trusted, authority.serving)


def settled(authority: Authority) -> Authority:
    """Return the second step: the old CA counts for nothing any more."""
    return of(authority.signing)


def renewed(shown: KeyPair, authority: Authority, now: datetime) -> KeyPair | None:
    """Return the bridge's certificate that is to follow ``shown``, with its names and its length of life; None while
    none is due. Raises ConfigurationError for a CA that can't sign."""
    (certificate, *_) = certificates(shown.certificate)
    life = certificate.not_valid_after_utc - certificate.not_valid_before_utc
    left = end_of(authority.serving) - now
    if is_signed_by(shown, certificates(authority.serving.certificate)) and (
        not is_due(shown, life, now) or end_of(authority.serving) <= end_of(shown)
    ):
        return None
    return issue_server(authority.serving, sorted(names_of(shown)), now=now, validity=min(life, left))


def renew(
    authority: Authority | None,
    certificate: PeerCertificate,
    request: bytes,
    *,
    now: datetime,
    not_before: datetime | None,
) -> IssuedCertificate:
    """Sign ``request`` for the tenant that shows ``certificate``, for as long as that was made for; nothing is signed
    if it is empty. ``not_before``: what begins earlier is revoked. ``authority`` None: its key is not on the host.

    Raises InvalidRequest, BridgeError RENEWAL_NOT_OFFERED, ConfigurationError for a CA that can't sign.
    """
    if authority is None:
        raise BridgeError(
            "this host does not have the key of the tenants' CA, so it renews no certificates: have its operator issue"
            " this cluster a new one (cloudprovider tenant rotate)",
            reason=Reason.RENEWAL_NOT_OFFERED,
            retryable=False,
        )
    if not request:
        return IssuedCertificate(b"", authority.trusted)
    ends = end_of(authority.signing)
    if ends <= certificate.not_after:
        raise BridgeError(
            f"the host's CA ends at {ends:%Y-%m-%d %H:%M}Z, so no certificate lives longer than this one: have its"
            " operator replace the CA (cloudprovider tenant replace-ca)",
            reason=Reason.RENEWAL_NOT_OFFERED,
            retryable=False,
        )
    signed = sign_request(
        authority.signing,
        request,
        certificate.tenant,
        certificate.trust_domain,
        now=now,
        validity=certificate.not_after - certificate.not_before,
        not_before=not_before,
    )
    return IssuedCertificate(signed, authority.trusted)
