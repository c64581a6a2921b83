"""The real webhook behind a real API server: registered by the manifest, under its own account and certificate."""

import asyncio
import contextlib
import json
import random
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import aiohttp

from cloudprovider.core.api.kubernetes import Secret
from cloudprovider.core.api.meta import ObjectMeta
from cloudprovider.core.api.pool import BLOCK_POOL_LABEL, Allocation, IPBlock, IPBlockSpec
from cloudprovider.core.naming import label_value
from cloudprovider.host import webhookserver
from cloudprovider.host.clock import utc_now
from cloudprovider.host.webhook import AdmissionWebhook
from cloudprovider.host.webhookcertificate import Lives
from cloudprovider.host.webhooktrust import CONFIGURATION, SECRET
from cloudprovider.kube import credentials
from cloudprovider.kube.client import HttpKubeClient
from cloudprovider.kube.resources import SECRETS, WEBHOOK_CONFIGURATIONS
from tests.host.world import LIMIT
from tests.lab import programs
from tests.lab.controlplane import ControlPlane

Json = dict[str, Any]


def pool(name: str, *ranges: Mapping[str, Any], **spec: object) -> Json:
    return {
        "apiVersion": "loadbalancer.harvesterhci.io/v1beta1",
        "kind": "IPPool",
        "metadata": {"name": name},
        "spec": {"ranges": [dict(r) for r in ranges], **spec},
    }


def load_balancer(name: str, namespace: str = "default", **spec: object) -> Json:
    return {
        "apiVersion": "loadbalancer.harvesterhci.io/v1beta1",
        "kind": "LoadBalancer",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "listeners": [{"name": "http", "port": 80, "backendPort": 8080}],
            "backendServerSelector": {"app": ["web"]},
            **spec,
        },
    }


def block(pool: str, first: str, **allocations: Allocation) -> IPBlock:
    """A block as the controller writes it; ``allocations`` by the last number of the address, "n5" for .5."""
    base = first.rsplit(".", 1)[0]
    held = {f"{base}.{key.removeprefix('n')}": allocation for key, allocation in allocations.items()}
    return IPBlock(
        metadata=ObjectMeta(name=f"{pool}-{first}", labels={BLOCK_POOL_LABEL: label_value(pool)}),
        spec=IPBlockSpec(pool=pool, first=first, allocations=held),
    )


PROBE = pool("probe", {"subnet": "224.0.0.0/24"})
"""What only the webhook refuses."""


def connect(plane: ControlPlane) -> HttpKubeClient:
    """A client under the host program's account and roles."""
    account = credentials.from_kubeconfig(str(programs.account(plane, "host")))
    return HttpKubeClient(account, program="host", version="0", rng=random.Random(1))


@dataclass
class Served:
    """A webhook that is being served."""

    webhook: AdmissionWebhook
    client: HttpKubeClient


@asynccontextmanager
async def serving(
    plane: ControlPlane, address: str, *, lives: Lives | None = None, check_seconds: float = 0.1
) -> AsyncIterator[Served]:
    """Serve the webhook while the block runs; returns when it listens."""
    async with connect(plane) as client:
        webhook = AdmissionWebhook(client)
        task = asyncio.create_task(
            webhookserver.run(
                client,
                webhook,
                address,
                namespace=programs.SYSTEM_NAMESPACE,
                now=utc_now,
                rng=random.Random(3),
                lives=lives,
                check_seconds=check_seconds,
            )
        )
        try:
            await _listening(address, task)
            yield Served(webhook, client)
        finally:
            ended = task.done()
            task.cancel()
            await asyncio.wait([task])
            if ended:
                task.result()


async def _listening(address: str, task: "asyncio.Task[None]") -> None:
    host, _, port = address.rpartition(":")
    async with asyncio.timeout(LIMIT):
        while True:
            if task.done():
                task.result()
            try:
                reader, writer = await asyncio.open_connection(host, int(port))
            except OSError:
                await asyncio.sleep(0.05)
                continue
            # No TLS, so it hangs up. A connection that it still waits for when the loop ends would be left unclosed,
            # and some later test be blamed for it.
            writer.write(b"no TLS\n")
            with contextlib.suppress(ConnectionError):
                await reader.read()
            writer.close()
            return


async def bundles(client: HttpKubeClient) -> set[str]:
    configuration = await client.get(WEBHOOK_CONFIGURATIONS, "", CONFIGURATION)
    return {webhook.client_config.ca_bundle for webhook in configuration.webhooks}


async def secret(client: HttpKubeClient) -> Secret:
    return await client.get(SECRETS, programs.SYSTEM_NAMESPACE, SECRET)


@dataclass(frozen=True)
class Outcome:
    """What the API server answered. ``causes``: field to (reason, message)."""

    code: int
    message: str
    reason: str
    causes: Mapping[str, tuple[str, str]]
    warnings: tuple[str, ...]

    @property
    def done(self) -> bool:
        return self.code < 400


class Admin:
    """An administrator at the API server, who sees all of an answer: causes, warnings."""

    def __init__(self, plane: ControlPlane, kubeconfig: Path | None = None) -> None:
        self._credentials = credentials.from_kubeconfig(str(kubeconfig or plane.kubeconfig))
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(ssl=self._credentials.ssl or True),
            timeout=aiohttp.ClientTimeout(total=LIMIT),
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()
        await asyncio.sleep(0)

    async def create(self, obj: Json) -> Outcome:
        return await self._request("POST", _collection(obj), obj)

    async def merge(self, obj: Json, patch: Json) -> Outcome:
        path = f"{_collection(obj)}/{obj['metadata']['name']}"
        return await self._request("PATCH", path, patch, "application/merge-patch+json")

    async def delete(self, obj: Json) -> Outcome:
        return await self._request("DELETE", f"{_collection(obj)}/{obj['metadata']['name']}", None)

    async def delete_all(self, obj: Json, selector: str) -> Outcome:
        """Delete what is of the kind of ``obj`` and has the labels."""
        return await self._request("DELETE", f"{_collection(obj)}?labelSelector={selector}", None)

    async def _request(
        self, method: str, path: str, body: Json | None, content_type: str = "application/json"
    ) -> Outcome:
        headers = {"Content-Type": content_type}
        if authorization := self._credentials.authorization():
            headers["Authorization"] = authorization
        data = None if body is None else json.dumps(body)
        url = self._credentials.server + path
        async with self._session.request(method, url, data=data, headers=headers) as response:
            told = json.loads(await response.read())
            warnings = tuple(
                w.split('"', 1)[1].rstrip('"').replace('\\"', '"') for w in response.headers.getall("Warning", ())
            )
            listed = (told.get("details") or {}).get("causes") or ()
            causes = {c.get("field", ""): (c.get("reason", ""), c["message"]) for c in listed}
            refused = response.status >= 400
            message, reason = (told["message"], told.get("reason", "")) if refused else ("", "")
            return Outcome(response.status, message, reason, causes, warnings)

    async def in_force(self) -> None:
        """Wait until the API server asks the webhook, and trusts it: it hears of both by a watch."""
        async with asyncio.timeout(LIMIT):
            while "denied the request" not in (await self.create(PROBE)).message:  # noqa: ASYNC110 - asks anew
                await asyncio.sleep(0.05)


def _collection(obj: Json) -> str:
    base = f"/apis/{obj['apiVersion']}"
    if obj["kind"] == "IPPool":
        return f"{base}/ippools"
    return f"{base}/namespaces/{obj['metadata']['namespace']}/loadbalancers"
