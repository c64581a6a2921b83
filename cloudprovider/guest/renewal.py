"""Renews this guest's certificate in time: a new key is made here and never leaves the cluster, the host signs.

What is renewed goes into a Secret of its own, which every copy has mounted; each uses the newer one of this certificate
and the operator's. So the operator's Secret is never written to, and whoever keeps that as it is (a manifest in a
folder, GitOps) takes nothing back. Where cert-manager renews the operator's Secret, it is left to that.
"""

import asyncio
import logging
import random
from collections.abc import Callable
from datetime import datetime
from typing import Final

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm

from cloudprovider.bridge.api import BridgeClient, Reason
from cloudprovider.bridge.authority import CERTIFICATE, KEY, TRUSTED
from cloudprovider.bridge.certificates import KeyPair, make_request
from cloudprovider.bridge.inspection import belongs, certificates, is_signed_by, keys_of, uris_of
from cloudprovider.bridge.secrets import content, is_kept_by_cert_manager, text
from cloudprovider.bridge.tlsfiles import TlsFiles
from cloudprovider.core.api.kubernetes import Secret
from cloudprovider.core.errors import BridgeError, CloudProviderError, ConfigurationError, Forbidden, NotFound
from cloudprovider.core.naming import GUEST_SECRET
from cloudprovider.core.news import CERTIFICATE_NOT_RENEWED, CERTIFICATE_RENEWED
from cloudprovider.kube.api import KubeClient
from cloudprovider.kube.backoff import Backoff
from cloudprovider.kube.events import EventRecorder
from cloudprovider.kube.resources import SECRETS

log = logging.getLogger(__name__)

DUE: Final = (0.66, 0.70)
"""The share of its life after which a certificate is renewed; where between, is left to chance: a host's guests that
were made together do not come together."""
CHECK_SECONDS: Final = 3600.0
"""Between two looks, also for a CA that is being replaced."""
_BACKOFF: Final = Backoff(60.0, CHECK_SECONDS)
_QUIET: Final = frozenset({Reason.UNSUPPORTED_VERSION, Reason.RENEWAL_NOT_OFFERED})
"""What is no trouble while nothing is due: a host that does not renew."""


class Renewal:
    """``secret`` in ``namespace`` is where to put what is renewed; ``files``: what the host is shown now.
    ``check_seconds``: between two looks."""

    def __init__(
        self,
        client: KubeClient,
        bridge: BridgeClient,
        *,
        namespace: str,
        secret: str,
        files: TlsFiles,
        events: EventRecorder,
        now: Callable[[], datetime],
        rng: random.Random,
        check_seconds: float = CHECK_SECONDS,
    ) -> None:
        self._client = client
        self._bridge = bridge
        self._namespace = namespace
        self._name = secret
        self._files = files
        self._events = events
        self._now = now
        self._rng = rng
        self._check_seconds = check_seconds
        self._share = rng.uniform(*DUE)

    async def run(self) -> None:
        """Look, and renew what is due, until cancelled; what fails is told, and tried again."""
        failures, told = 0, ""
        while True:
            try:
                await self.check()
                failures, told = 0, ""
                wait = self._check_seconds * self._rng.uniform(0.8, 1.0)
            except CloudProviderError as error:
                failures += 1
                wait = min(_BACKOFF.delay(failures, self._rng), self._check_seconds)
                if str(error) != told:
                    told = str(error)
                    log.warning("The certificate can't be renewed; trying again.", extra={"error": told})
            await asyncio.sleep(wait)

    async def check(self) -> None:
        """Look once. Raises KubeError, ConfigurationError for files that can't be used, and BridgeError: of a host that
        does not renew only when something is due."""
        secret = await self._client.get(SECRETS, self._namespace, self._name)
        if await self._is_left_to_cert_manager():
            return
        shown, trusted = self._newest(secret)
        (certificate, *_) = certificates(shown.certificate)
        due = self._is_due(certificate)
        try:
            if due or await self._told_otherwise(trusted):
                await self._renew(secret, shown, trusted)
        except BridgeError as error:
            if due:
                self._warn(secret, certificate, error)
            elif error.reason in _QUIET:
                return
            raise

    async def _is_left_to_cert_manager(self) -> bool:
        try:
            return is_kept_by_cert_manager(await self._client.get(SECRETS, self._namespace, GUEST_SECRET))
        except (NotFound, Forbidden):
            return False  # the operator's certificate is in plain files

    def _newest(self, secret: Secret) -> tuple[KeyPair, set[x509.Certificate]]:
        """What is shown, or about to be: a Secret just written is mounted after a while."""
        material = self._files.load()
        if secret.data:
            where = f"Secret {self._namespace}/{self._name}"
            try:
                kept = KeyPair(content(secret, CERTIFICATE, where), content(secret, KEY, where))
                trusted = set(certificates(content(secret, TRUSTED, where)))
                if not belongs(kept):
                    raise ConfigurationError(f"{where}: the key does not belong to the certificate")
                if certificates(kept.certificate)[0].not_valid_before_utc >= material.not_before:
                    return kept, trusted
            except (ConfigurationError, ValueError, TypeError, UnsupportedAlgorithm) as error:
                log.warning("The renewed certificate can't be read.", extra={"error": str(error)})
        return KeyPair(material.certificate, material.key), set(certificates(material.ca))

    def _is_due(self, certificate: x509.Certificate) -> bool:
        begins, ends = certificate.not_valid_before_utc, certificate.not_valid_after_utc
        return self._now() >= begins + self._share * (ends - begins)

    async def _told_otherwise(self, trusted: set[x509.Certificate]) -> bool:
        """Whether the host has other CAs than are trusted here: one is being replaced."""
        answer = await self._bridge.renew_certificate(b"")
        return _authorities(answer.authorities) != trusted

    async def _renew(self, secret: Secret, shown: KeyPair, trusted: set[x509.Certificate]) -> None:
        request = make_request()
        answer = await self._bridge.renew_certificate(request.certificate)
        new = KeyPair(answer.certificate, request.key)
        authorities = _authorities(answer.authorities)
        if not keys_of(authorities) & keys_of(trusted):
            raise _unusable("none of the CAs that the host has sent is one that this guest trusts")
        try:
            (certificate, *_) = certificates(new.certificate)
            fits = belongs(new) and uris_of(new) == uris_of(shown) and is_signed_by(new, list(authorities))
        except ValueError:
            fits = False
        if not fits or certificate.not_valid_after_utc <= self._now():
            raise _unusable("the certificate that the host has sent is not one for this tenant and this key")
        parts = {CERTIFICATE: new.certificate, KEY: new.key, TRUSTED: answer.authorities}
        patch = {
            "metadata": {"resourceVersion": secret.metadata.resource_version},
            "data": {name: text(value) for name, value in parts.items()},
        }
        await self._client.merge_patch(SECRETS, *secret.key, patch)
        ends = f"{certificate.not_valid_after_utc:%Y-%m-%dT%H:%M:%SZ}"
        log.info("The certificate has been renewed.", extra={"secret": self._name, "not_after": ends})
        message = f"the certificate for the host's bridge has been renewed, and ends at {ends}"
        self._events.record(SECRETS, secret, CERTIFICATE_RENEWED, message)

    def _warn(self, secret: Secret, certificate: x509.Certificate, error: BridgeError) -> None:
        ends = f"{certificate.not_valid_after_utc:%Y-%m-%dT%H:%M:%SZ}"
        message = f"the certificate for the host's bridge ends at {ends}, and can't be renewed: {error}"
        self._events.record(SECRETS, secret, CERTIFICATE_NOT_RENEWED, message)


def _authorities(pem: bytes) -> set[x509.Certificate]:
    try:
        return set(certificates(pem))
    except ValueError as error:
        raise _unusable("the CAs that the host has sent can't be read") from error


def _unusable(what: str) -> BridgeError:
    return BridgeError(
        f"{what}: have its operator issue the certificate anew (cloudprovider tenant rotate)", reason=Reason.INTERNAL
    )
