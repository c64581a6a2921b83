"""Keeps the webhook's certificate renewed, and the API server's trust in it, for as long as the program runs.

Three things must agree: the Secret that all copies of the program share, the ``caBundle`` of the webhook configuration,
and what this copy shows. A look at all three every quarter of a minute repairs whatever differs: another copy renewed
the certificate, somebody replaced the configuration, the Secret was emptied. Of two copies that renew at once one wins
(the Secret's resourceVersion); the other reads what that one wrote.

The configuration comes from ``manifests/host`` without a ``caBundle``. It is written here by server-side apply, as the
one field of the manager ``cloudprovider-webhook``: ``kubectl apply`` of the manifest, of either kind, takes nothing
away that it never held.
"""

import asyncio
import base64
import logging
import random
from collections.abc import Callable, Sequence
from typing import Final
from urllib.parse import urlsplit

from cloudprovider.bridge.inspection import end_of
from cloudprovider.core.api.admission import ValidatingWebhookConfiguration
from cloudprovider.core.errors import CloudProviderError, ConfigurationError, Conflict
from cloudprovider.host.clock import Clock
from cloudprovider.host.webhookcertificate import Lives, Material, data_of, read, renewed
from cloudprovider.kube.api import KubeClient
from cloudprovider.kube.backoff import Backoff
from cloudprovider.kube.resources import SECRETS, WEBHOOK_CONFIGURATIONS

log = logging.getLogger(__name__)

CONFIGURATION: Final = "cloudprovider-admission"
SECRET: Final = "cloudprovider-webhook-tls"  # noqa: S105 - a name
FIELD_MANAGER: Final = "cloudprovider-webhook"
CHECK_SECONDS: Final = 15.0
_BACKOFF: Final = Backoff(0.5, 30.0)


class WebhookTrust:
    """``use`` is handed what to show, whenever that is new and the API server has been told to trust it.

    ``namespace`` holds the Secret. ``check_seconds``: between two looks.
    """

    def __init__(
        self,
        client: KubeClient,
        use: Callable[[Material], None],
        *,
        namespace: str,
        now: Clock,
        rng: random.Random,
        lives: Lives | None = None,
        check_seconds: float = CHECK_SECONDS,
    ) -> None:
        self._client = client
        self._use = use
        self._namespace = namespace
        self._now = now
        self._rng = rng
        self._lives = lives or Lives()
        self._check_seconds = check_seconds
        self._used: Material | None = None

    async def run(self) -> None:
        """Look and repair until cancelled; what fails is logged and tried again."""
        failures, told = 0, ""
        while True:
            try:
                await self.check()
                failures, told = 0, ""
                wait = self._check_seconds * self._rng.uniform(0.8, 1.2)
            except CloudProviderError as error:
                failures += 1
                wait = _BACKOFF.delay(failures, self._rng)
                # Losing a race against another copy is no trouble.
                if not isinstance(error, Conflict) and str(error) != told:
                    told = str(error)
                    log.warning("The webhook's certificate can't be seen to.", extra={"error": told})
            await asyncio.sleep(wait)

    async def check(self) -> None:
        """Look once, and repair. Raises KubeError, and ConfigurationError when the configuration names no webhook."""
        configuration = await self._client.get(WEBHOOK_CONFIGURATIONS, "", CONFIGURATION)
        hosts = hosts_of(configuration)
        secret = await self._client.get(SECRETS, self._namespace, SECRET)
        found = read(secret.data)
        if found is None and secret.data:
            log.warning(
                "The Secret of the webhook's certificate is unusable; it is made anew.", extra={"secret": SECRET}
            )
        material = renewed(found, hosts, now=self._now(), lives=self._lives)
        if material is not found:
            patch = {"metadata": {"resourceVersion": secret.metadata.resource_version}, "data": data_of(material)}
            await self._client.merge_patch(SECRETS, self._namespace, SECRET, patch)
            log.info(
                "The webhook's certificate has been renewed.",
                extra={"not_after": end_of(material.serving).isoformat(), "names": hosts},
            )
        # First the trust, then what is to be trusted: at the next look, as the API server hears of it by a watch. What
        # is shown until then must be trusted too.
        news = await self._announce(configuration, material.bundle)
        if news and self._used is not None and self._used.ca.certificate.strip() in material.bundle:
            return
        if self._used is None or material.serving.certificate != self._used.serving.certificate:
            self._use(material)
            self._used = material

    async def _announce(self, configuration: ValidatingWebhookConfiguration, bundle: bytes) -> bool:
        """Have the API server trust ``bundle``; say whether that is news to it."""
        text = base64.b64encode(bundle).decode()
        if all(webhook.client_config.ca_bundle == text for webhook in configuration.webhooks):
            return False
        webhooks = [{"name": w.name, "clientConfig": {"caBundle": text}} for w in configuration.webhooks]
        # The UID: one that has been deleted in between is not to come back as a torso.
        patch = {"metadata": {"uid": configuration.metadata.uid}, "webhooks": webhooks}
        await self._client.apply(WEBHOOK_CONFIGURATIONS, "", CONFIGURATION, patch, field_manager=FIELD_MANAGER)
        log.info("The API server has been told which CA signs the webhook's certificate.")
        return True


def hosts_of(configuration: ValidatingWebhookConfiguration) -> Sequence[str]:
    """Return the names that the API server calls the webhooks by, and so wants to see in the certificate.

    Raises ConfigurationError when there is none.
    """
    hosts = set()
    for webhook in configuration.webhooks:
        where = webhook.client_config
        if where.service is not None:
            hosts.add(f"{where.service.name}.{where.service.namespace}.svc")
        elif host := urlsplit(where.url).hostname:
            hosts.add(host)
    if not hosts:
        raise ConfigurationError(
            f"the ValidatingWebhookConfiguration {CONFIGURATION} names no webhook: apply manifests/host again"
        )
    return sorted(hosts)
