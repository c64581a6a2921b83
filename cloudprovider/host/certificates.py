"""The host's part in certificates: renews tenants' by the CA in its Secret, and the bridge's own before it ends.

Where there is no such Secret (an operator keeps the CA elsewhere), nothing is renewed. What cert-manager keeps up to
date is left to it.
"""

import asyncio
import logging
import random
from collections.abc import Callable
from datetime import datetime
from typing import Final

from cloudprovider.bridge import authority
from cloudprovider.bridge.api import IssuedCertificate, PeerCertificate, Reason
from cloudprovider.bridge.authority import CERTIFICATE, KEY, TRUSTED, Authority
from cloudprovider.bridge.certificates import KeyPair
from cloudprovider.bridge.inspection import certificates, end_of, keys_of
from cloudprovider.bridge.secrets import content, is_kept_by_cert_manager, text
from cloudprovider.core.api.kubernetes import Secret
from cloudprovider.core.errors import BridgeError, CloudProviderError, ConfigurationError, Conflict, Forbidden, NotFound
from cloudprovider.core.naming import CA_SECRET, SERVER_SECRET
from cloudprovider.core.news import BRIDGE_CERTIFICATE_RENEWED
from cloudprovider.host.clock import Clock
from cloudprovider.kube.api import KubeClient
from cloudprovider.kube.backoff import Backoff
from cloudprovider.kube.events import EventRecorder
from cloudprovider.kube.resources import SECRETS

log = logging.getLogger(__name__)

CHECK_SECONDS: Final = 60.0
_BACKOFF: Final = Backoff(5.0, 300.0)


class Certificates:
    """``namespace`` holds both Secrets. ``trusted``: the CAs (PEM) that the bridge trusts at this moment; None: those
    of the Secret. Made for one term in office."""

    def __init__(
        self,
        client: KubeClient,
        *,
        namespace: str,
        events: EventRecorder,
        now: Clock,
        rng: random.Random,
        trusted: Callable[[], bytes] | None = None,
        check_seconds: float = CHECK_SECONDS,
    ) -> None:
        self._client = client
        self._namespace = namespace
        self._events = events
        self._now = now
        self._rng = rng
        self._trusted = trusted
        self._check_seconds = check_seconds

    async def renew(
        self, certificate: PeerCertificate, request: bytes, *, not_before: datetime | None
    ) -> IssuedCertificate:
        """See :func:`cloudprovider.bridge.authority.renew`. Raises InvalidRequest, BridgeError, KubeError."""
        try:
            ca = await self._authority()
            if ca is not None and self._trusted is not None:
                ca = authority.as_shown(ca, self._trusted())
            issued = authority.renew(ca, certificate, request, now=self._now(), not_before=not_before)
        except ConfigurationError as error:
            log.error("The tenants' CA can't be used.", extra={"error": str(error)})  # noqa: TRY400 - no fault of ours
            raise BridgeError(
                "the host's CA can't be used, which its log tells: ask its operator",
                reason=Reason.RENEWAL_NOT_OFFERED,
                retryable=False,
            ) from error
        if issued.certificate:
            (new, *_) = certificates(issued.certificate)
            log.info(
                "A tenant's certificate has been renewed.",
                extra={"tenant": certificate.tenant.path, "not_after": new.not_valid_after_utc.isoformat()},
            )
        return issued

    async def run(self) -> None:
        """See to the bridge's certificate until cancelled; what fails is logged and tried again."""
        failures, told = 0, ""
        while True:
            try:
                await self.check()
                failures, told = 0, ""
                wait = self._check_seconds * self._rng.uniform(0.8, 1.2)
            except CloudProviderError as error:
                failures += 1
                wait = _BACKOFF.delay(failures, self._rng)
                if not isinstance(error, Conflict) and str(error) != told:
                    told = str(error)
                    log.warning("The bridge's certificate can't be seen to.", extra={"error": told})
            await asyncio.sleep(wait)

    async def check(self) -> None:
        """Look once, and renew what is due. Raises KubeError, ConfigurationError."""
        ca = await self._authority()
        if ca is None:
            return
        try:
            secret = await self._client.get(SECRETS, self._namespace, SERVER_SECRET)
        except (NotFound, Forbidden):
            return  # the certificate is in files
        if is_kept_by_cert_manager(secret):
            return
        where = f"Secret {self._namespace}/{SERVER_SECRET}"
        shown = KeyPair(content(secret, CERTIFICATE, where), content(secret, KEY, where))
        try:
            trusts = set(certificates(content(secret, TRUSTED, where)))
            if not keys_of(trusts) & keys_of(certificates(ca.trusted)):
                raise ConfigurationError(
                    f"{where} is by another CA than that of the Secret {self._namespace}/{CA_SECRET}, which no guest"
                    " knows: put the right one there, or issue all anew (cloudprovider tenant server-certificate)"
                )
            new = authority.renewed(shown, ca, self._now())
        except ValueError as error:
            raise ConfigurationError(f"{where} holds no certificate that can be read: {error}") from error
        data: dict[str, bytes] = {}
        if new is not None:
            data |= {CERTIFICATE: new.certificate, KEY: new.key}
        if trusts != set(certificates(ca.trusted)):
            data |= {TRUSTED: ca.trusted}
        if data:
            await self._write(secret, data, new)

    async def _write(self, secret: Secret, data: dict[str, bytes], new: KeyPair | None) -> None:
        patch = {
            "metadata": {"resourceVersion": secret.metadata.resource_version},
            "data": {name: text(value) for name, value in data.items()},
        }
        written = await self._client.merge_patch(SECRETS, *secret.key, patch)
        if new is None:
            log.info("The bridge now trusts what the tenants' CA says.", extra={"secret": SERVER_SECRET})
            return
        ends = end_of(new)
        log.info("The bridge's certificate has been renewed.", extra={"not_after": ends.isoformat()})
        message = f"the bridge's certificate has been renewed, and ends at {ends:%Y-%m-%dT%H:%M:%SZ}"
        self._events.record(SECRETS, written, BRIDGE_CERTIFICATE_RENEWED, message)

    async def _authority(self) -> Authority | None:
        try:
            secret = await self._client.get(SECRETS, self._namespace, CA_SECRET)
        except (NotFound, Forbidden):
            return None
        return authority.read(secret.data, f"Secret {self._namespace}/{CA_SECRET}")
