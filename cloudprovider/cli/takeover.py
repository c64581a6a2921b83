"""``cloudprovider takeover``: the steps from Harvester's own load balancer controller to this one.

The old controller is switched off first, so that nothing changes while it is adopted; what it has announced goes on
being announced (by kube-vip) until the Services that it made are deleted. Each step may be done twice: a run that was
broken off is run again.
"""

import asyncio
import itertools
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from typing import Any, Final, TypeVar, cast

import msgspec

from cloudprovider import __version__
from cloudprovider.cli import crds
from cloudprovider.core.api.apps import CustomResourceDefinition, Deployment
from cloudprovider.core.api.kubernetes import Service
from cloudprovider.core.api.loadbalancer import LoadBalancer
from cloudprovider.core.api.meta import KubeObject
from cloudprovider.core.api.pool import IPPool
from cloudprovider.core.errors import CloudProviderError, ConfigurationError, Conflict, Forbidden, NotFound, Unavailable
from cloudprovider.core.takeover import (
    CONTROLLER,
    NAMESPACE,
    SERVICE_LABEL,
    WEBHOOK,
    Plan,
    plan,
    without_finalizers,
)
from cloudprovider.core.times import rfc3339
from cloudprovider.kube.api import KubeClient, Resource
from cloudprovider.kube.backoff import Backoff
from cloudprovider.kube.client import HttpKubeClient
from cloudprovider.kube.credentials import load
from cloudprovider.kube.resources import (
    DEFINITIONS,
    DEPLOYMENTS,
    IPBLOCKS,
    IPPOOLS,
    LOADBALANCERS,
    MUTATING_WEBHOOK_CONFIGURATIONS,
    PODS,
    SERVICES,
    VIRTUAL_MACHINE_INSTANCES,
    VIRTUAL_MACHINES,
    WEBHOOK_CONFIGURATIONS,
)

T = TypeVar("T", bound=KubeObject)

FIELD_MANAGER: Final = "cloudprovider-takeover"
STATUS_MANAGER: Final = "cloudprovider-controller"
LIMIT_SECONDS: Final = 120.0
"""For the old controller's pods to end, and for what is deleted to be gone."""
_NEW_KINDS: Final = ("IPBlock", "GuestCluster")
_LOOK_SECONDS: Final = 0.2
_TRIES: Final = 8
_BACKOFF: Final = Backoff(base=0.2, limit=5.0)


@dataclass
class Scene:
    """What there is. ``webhooks``: the kinds of which the old webhook has a configuration."""

    old: Sequence[Deployment]
    pools: Sequence[IPPool]
    balancers: Sequence[LoadBalancer]
    services: Sequence[Service]
    finalized: Sequence[tuple[Resource[Any], KubeObject]]
    webhooks: Sequence[Resource[Any]]
    definitions: Sequence[CustomResourceDefinition]
    plan: Plan
    missing: Sequence[str] = field(default_factory=tuple)

    @property
    def is_done(self) -> bool:
        """Whether nothing is left to do."""
        running = any(d.spec.replicas for d in self.old)
        left = (self.plan.blocks, self.services, self.finalized, self.webhooks, self.converting)
        return not running and not any(left)

    @property
    def converting(self) -> Sequence[CustomResourceDefinition]:
        """The definitions whose objects the old webhook is asked to convert."""
        return [d for d in self.definitions if d.spec.conversion.strategy == "Webhook"]


class Takeover:
    """``tell`` is handed a line for each step."""

    def __init__(
        self, client: KubeClient, *, now: Callable[[], datetime], rng: random.Random, tell: Callable[[str], None]
    ) -> None:
        self._client = client
        self._rng = rng
        self._now = now
        self._tell = tell

    async def look(self) -> Scene:
        """Read all, and plan; nothing is changed. Raises KubeError, ConfigurationError."""
        definitions = [d for d in (await self._all(DEFINITIONS)) if d.metadata.name in _OURS]
        names = {d.metadata.name for d in definitions}
        for needed in (LOADBALANCERS, IPPOOLS):
            if f"{needed.plural}.{needed.group}" not in names:
                raise ConfigurationError(
                    f"this cluster knows no {needed.kind}: there is nothing to take over; is it the host (--context)?"
                )
        pools, balancers = await self._all(IPPOOLS), await self._all(LOADBALANCERS)
        blocks = await self._all(IPBLOCKS)
        old = [d for d in [await self._find(DEPLOYMENTS, NAMESPACE, n) for n in (CONTROLLER, WEBHOOK)] if d is not None]
        finalized = [
            (resource, obj)
            for resource in (LOADBALANCERS, IPPOOLS, VIRTUAL_MACHINES, VIRTUAL_MACHINE_INSTANCES)
            for obj in await self._all(cast("Resource[Any]", resource))
            if without_finalizers(obj) is not None
        ]
        kinds = (cast("Resource[Any]", kind) for kind in (WEBHOOK_CONFIGURATIONS, MUTATING_WEBHOOK_CONFIGURATIONS))
        registered = [kind for kind in kinds if await self._find(kind, "", WEBHOOK) is not None]
        made = _owners(balancers)
        services = [s for s in await self._all(SERVICES, f"{SERVICE_LABEL}=true") if s.key in made]
        return Scene(
            old=old,
            pools=pools,
            balancers=balancers,
            services=services,
            finalized=finalized,
            webhooks=registered,
            definitions=definitions,
            plan=plan(pools, balancers, blocks, now=self._stamp()),
            missing=[d.resource.kind for d in crds.DEFINITIONS if d.name not in names],
        )

    async def carry_out(self) -> Scene:
        """Do it; return what was adopted. Raises KubeError, Halted."""
        scene = await self.look()
        await self._switch_off(scene)
        await self._unregister(scene)
        await self._define(scene.missing)
        scene = await self.look()  # anew: what the old controller did to its end counts
        for block in scene.plan.blocks:
            verb = self._client.replace if block.metadata.resource_version else self._client.create
            await verb(IPBLOCKS, block)
        recorded = _counted(len(scene.plan.adoptions), "address", "addresses")
        self._tell(f"recorded {recorded} in {_counted(len(scene.plan.blocks), 'block')}")
        await self._take_off_the_network(scene.services)
        await self._write_statuses(scene)
        for resource, obj in scene.finalized:
            await self._patiently(partial(self._take_finalizers_off, resource, obj.key))
        self._tell(f"took the old controller's finalizers off {_counted(len(scene.finalized), 'object')}")
        return scene

    async def _take_finalizers_off(self, resource: Resource[Any], key: tuple[str, str]) -> None:
        obj = await self._find(resource, *key)
        left = without_finalizers(obj) if obj is not None else None
        if obj is not None and left is not None:  # on just this version: somebody else's must not be lost
            patch = {"metadata": {"finalizers": left or None, "resourceVersion": obj.metadata.resource_version}}
            await self._client.merge_patch(resource, *key, patch)

    async def _switch_off(self, scene: Scene) -> None:
        for deployment in scene.old:
            if deployment.spec.replicas:
                await self._client.merge_patch(DEPLOYMENTS, *deployment.key, {"spec": {"replicas": 0}})
                self._tell(f"scaled {'/'.join(deployment.key)} from {deployment.spec.replicas} to 0")
        for deployment in scene.old:
            labels = ",".join(f"{k}={v}" for k, v in sorted(deployment.spec.selector.match_labels.items()))
            await self._until_gone(
                PODS, deployment.metadata.namespace, labels, f"the pods of {'/'.join(deployment.key)}"
            )

    async def _unregister(self, scene: Scene) -> None:
        """Its webhook, which answers no more; it registers itself again when it starts."""
        for resource in scene.webhooks:
            await self._client.delete(resource, "", WEBHOOK)
            self._tell(f"deleted the {resource.kind} {WEBHOOK}")
        for definition in scene.converting:
            patch = {"spec": {"conversion": {"strategy": "None", "webhook": None}}}
            await self._client.merge_patch(DEFINITIONS, "", definition.metadata.name, patch)
            self._tell(f"switched the conversion of {definition.metadata.name} off")

    async def _define(self, missing: Sequence[str]) -> None:
        """The kinds that Harvester does not have; those that it has are left as they are."""
        for each in crds.DEFINITIONS:
            if each.resource.kind in missing and each.resource.kind in _NEW_KINDS:
                await self._client.apply(DEFINITIONS, "", each.name, crds.manifest(each), field_manager=FIELD_MANAGER)
                self._tell(f"defined {each.resource.kind}")
        await self._until(self._blocks_are_served, "the API server to serve IPBlocks")

    async def _blocks_are_served(self) -> bool:
        try:
            await self._client.list(IPBLOCKS)
        except (NotFound, Unavailable):  # just made: not known yet, or "storage is (re)initializing"
            return False
        return True

    async def _take_off_the_network(self, services: Sequence[Service]) -> None:
        for service in services:
            await self._client.delete(SERVICES, *service.key, uid=service.metadata.uid)
        for namespace in sorted({s.metadata.namespace for s in services}):
            await self._until_gone(SERVICES, namespace, f"{SERVICE_LABEL}=true", f"the old Services in {namespace}")
        if services:
            self._tell(
                f"deleted {_counted(len(services), 'Service')} by which kube-vip announced virtual machines' addresses"
            )

    async def _write_statuses(self, scene: Scene) -> None:
        """As the installed definition allows: Harvester's has no status subresource, and drops what it does not
        know."""
        name = f"{LOADBALANCERS.plural}.{LOADBALANCERS.group}"
        (definition,) = (d for d in scene.definitions if d.metadata.name == name)
        version = next(v for v in definition.spec.versions if v.name == LOADBALANCERS.version)
        for lb, status in scene.plan.statuses:
            patch = {"metadata": {"uid": lb.metadata.uid}, "status": msgspec.to_builtins(status)}
            write: Callable[[], Awaitable[object]] = partial(
                self._client.apply,
                LOADBALANCERS,
                *lb.key,
                patch,
                field_manager=STATUS_MANAGER,
                subresource="status",
            )
            if "status" not in version.subresources:
                write = partial(self._client.merge_patch, LOADBALANCERS, *lb.key, patch)
            await self._patiently(write)
        self._tell(f"wrote the status of {_counted(len(scene.plan.statuses), 'load balancer')}")

    # -- underneath ----------------------------------------------------------------------------------------------

    async def _all(self, resource: Resource[T], label_selector: str = "") -> Sequence[T]:
        """All objects; none where the kind is not known."""
        try:
            return (await self._client.list(resource, label_selector=label_selector)).items
        except NotFound:
            return ()

    async def _find(self, resource: Resource[T], namespace: str, name: str) -> T | None:
        try:
            return await self._client.get(resource, namespace, name)
        except NotFound:
            return None

    async def _patiently(self, write: Callable[[], Awaitable[object]]) -> None:
        """Again where somebody else wrote in between, or the API server still asks the webhook that is gone."""
        for failures in itertools.count(1):
            try:
                await write()
            except (Conflict, Unavailable):
                if failures == _TRIES:
                    raise
                await asyncio.sleep(_BACKOFF.delay(failures, self._rng))
            else:
                return

    async def _until_gone(self, resource: Resource[Any], namespace: str, labels: str, what: str) -> None:
        async def gone() -> bool:
            return not (await self._client.list(resource, namespace, label_selector=labels)).items

        await self._until(gone, f"{what} to end")

    async def _until(self, holds: Callable[[], Any], what: str) -> None:
        try:
            async with asyncio.timeout(LIMIT_SECONDS):
                while not await holds():  # noqa: ASYNC110 - objects, not a signal
                    await asyncio.sleep(_LOOK_SECONDS)
        except TimeoutError:
            raise Halted(f"waited {LIMIT_SECONDS:.0f} s for {what}; look at it, then run this again") from None

    def _stamp(self) -> str:
        return rfc3339(self._now())


_OURS: Final = frozenset(d.name for d in crds.DEFINITIONS)


class Halted(CloudProviderError):
    """It could not be carried out to its end; run again, it goes on."""


def told(scene: Scene) -> str:
    """What would be done, for people."""
    lines = [f"Harvester's own load balancer controller, in {NAMESPACE}:"]
    if not scene.old:
        lines.append("  not there")
    for each in scene.old:
        count = each.spec.replicas
        said = f"{_counted(count, 'replica')}, to be scaled to 0" if count else "switched off already"
        lines.append(f"  {each.metadata.name}: {said}")
    adoptions = scene.plan.adoptions
    lines.append(
        f"\nIt has {_counted(len(scene.pools), 'pool')} and"
        f" {_counted(len(scene.balancers), 'load balancer')}. Adopted with them:"
    )
    lines += _table([[a.pool, str(a.address), a.owner, _KINDS[a.kind]] for a in adoptions]) or ["  no address"]
    if scene.plan.unadopted:
        lines.append("\nNot adopted:")
        lines += _table([[u.pool, u.address, u.owner, u.message] for u in scene.plan.unadopted])
    also = []
    if scene.missing:
        new = [kind for kind in scene.missing if kind in _NEW_KINDS]
        also.append(f"define {' and '.join(new)}")
    if scene.services:
        names = ", ".join("/".join(s.key) for s in scene.services[:_NAMED])
        more = f" and {len(scene.services) - _NAMED} more" if len(scene.services) > _NAMED else ""
        also.append(f"delete the Services by which kube-vip announces virtual machines' addresses: {names}{more}")
    if scene.finalized:
        also.append(f"take the old controller's finalizers off {_counted(len(scene.finalized), 'object')}")
    if scene.webhooks or scene.converting:
        also.append(f"take {WEBHOOK} off the API server's list; it registers itself when it starts")
    if also:
        lines += ["\nBesides:", *(f"  {text}" for text in also)]
    return "\n".join(lines) + "\n"


NEXT: Final = """\
The addresses are recorded. Next:
  cloudprovider crds | kubectl apply --server-side --force-conflicts -f -
  kubectl apply -k your copy of manifests/overlays/example/host
Until then nobody announces the addresses of virtual machines. docs/takeover.md says what guests need, and how to go
back.
"""
_KINDS: Final = {
    "vm": "virtual machines",
    "cluster": "guest cluster",
    "guest": "guest cluster with Harvester's provider: kept, not forwarded",
}
_NAMED: Final = 5


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))] if rows else []
    return ["  " + "   ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in rows]


async def run(kubeconfig: str, context: str, *, yes: bool, tell: Callable[[str], None]) -> None:
    """Say what would be done, or do it. Raises ConfigurationError, KubeError, Halted."""
    try:
        await _run(kubeconfig, context, yes=yes, tell=tell)
    except Forbidden as error:
        message = "run it as an administrator of the host cluster (--kubeconfig, --context)"
        raise Halted(f"{message}; this account may not do all of it: {error}") from error
    except Unavailable as error:
        raise Halted(f"{error}; check --kubeconfig and --context, then run it again") from error


async def _run(kubeconfig: str, context: str, *, yes: bool, tell: Callable[[str], None]) -> None:
    credentials = load(kubeconfig or None, context or None)
    rng = random.Random()  # noqa: S311 - jitter, no secret
    async with HttpKubeClient(credentials, program="takeover", version=__version__, rng=rng) as client:
        takeover = Takeover(client, now=lambda: datetime.now(UTC), rng=rng, tell=tell)
        scene = await takeover.look()
        tell(told(scene))
        if scene.is_done:
            tell("There is nothing left to do.")
        elif yes:
            await takeover.carry_out()
            tell(f"\n{NEXT}")
        else:
            tell("Nothing was changed. With --yes it is done.")


def _counted(number: int, one: str, many: str = "") -> str:
    return f"{number} {one}" if number == 1 else f"{number} {many or one + 's'}"


def _owners(balancers: Sequence[LoadBalancer]) -> set[tuple[str, str]]:
    return {lb.key for lb in balancers if lb.spec.workload_type != "cluster"}
