"""Harvester's own load balancer controller works on the same objects: the host program does not work beside it."""

import asyncio
import logging
import random
from typing import Final

from cloudprovider.core.errors import ConfigurationError, Forbidden, KubeError, NotFound
from cloudprovider.core.takeover import CONTROLLER, NAMESPACE, refusal
from cloudprovider.kube.api import KubeClient
from cloudprovider.kube.backoff import Backoff
from cloudprovider.kube.resources import DEPLOYMENTS

log = logging.getLogger(__name__)

BACKOFF: Final = Backoff(base=0.5, limit=15.0)


async def stand_alone(client: KubeClient, rng: random.Random) -> None:
    """Return once the old controller is known to be off, or not there. Raises ConfigurationError when it runs."""
    failures = 0
    while True:
        try:
            old = await client.get(DEPLOYMENTS, NAMESPACE, CONTROLLER)
        except NotFound:
            return
        except Forbidden as error:
            log.warning(
                "Whether Harvester's own load balancer controller runs can't be seen; it must not.",
                extra={"error": str(error)},
            )
            return
        except KubeError as error:
            failures += 1
            log.warning("Harvester's own controller is looked for again.", extra={"error": str(error)})
            await asyncio.sleep(BACKOFF.delay(failures, rng))
        else:
            if message := refusal(old.spec.replicas):
                raise ConfigurationError(message)
            return
