"""One run of the plugin: which cluster, which side of it, what may be read there."""

import asyncio
import os
import random
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Final, Literal, Protocol, TypeVar

from cloudprovider import __version__
from cloudprovider.cli.kubectl.screen import Progress
from cloudprovider.core.api.meta import KubeObject
from cloudprovider.core.errors import ConfigurationError, Forbidden, KubeError, NotFound, Unavailable
from cloudprovider.kube.api import KubeClient, Reader, Resource
from cloudprovider.kube.client import HttpKubeClient
from cloudprovider.kube.credentials import SERVICE_ACCOUNT, Credentials, from_kubeconfig, from_service_account

T = TypeVar("T", bound=KubeObject)

SYSTEM: Final = "cloudprovider-system"
GROUP: Final = "/apis/loadbalancer.harvesterhci.io/v1beta1"
_DEADLINE: Final = 10.0


class Cluster(KubeClient, Reader, Protocol):
    """An API server, its objects and what is beside them."""


class Refused(Exception):
    """The cluster can't be asked; one sentence on what is wrong and what to do."""


class NothingThere(Exception):
    """What was asked for does not exist."""


@dataclass
class Session:
    """``namespace``: given by ``-n``, or that of the context; ``everywhere``: all namespaces are meant. ``now``: by the
    API server's clock, where it says it. ``notes``: what could not be read, for people."""

    cluster: Cluster
    side: Literal["host", "guest"]
    namespace: str
    everywhere: bool
    now: datetime
    progress: Progress
    notes: list[str] = field(default_factory=list)

    async def all(self, resource: Resource[T], what: str, *, namespace: str | None = None) -> Sequence[T]:
        """All objects of a kind that the command is about. Raises Refused."""
        where = ("" if self.everywhere else self.namespace) if namespace is None else namespace
        async with self.progress.doing(f"reading {what}"):
            try:
                return (await self.cluster.list(resource, where if resource.namespaced else "")).items
            except KubeError as error:
                raise Refused(sentence(error, f"list {resource.plural}", where)) from error

    async def widest(self, resource: Resource[T], what: str) -> Sequence[T]:
        """All objects of a kind that the user may see: of all namespaces, or else of the context's. Raises Refused."""
        self.everywhere = True
        try:
            return await self.all(resource, what)
        except Refused as refused:
            if not isinstance(refused.__cause__, Forbidden):
                raise
        self.everywhere = False
        found = await self.all(resource, what)
        self.notes.append(f"only of the namespace {self.namespace}: you may not see those of all")
        return found

    async def seen(self, resource: Resource[T], what: str, *, namespace: str | None = None) -> Sequence[T] | None:
        """The same for what only adds to the answer: None, and a note, where it may not be read."""
        try:
            return await self.all(resource, what, namespace=namespace)
        except Refused as refused:
            if not isinstance(refused.__cause__, Forbidden | NotFound):
                raise
            if isinstance(refused.__cause__, Forbidden):
                self.notes.append(f"{what} can't be seen: you may not list {resource.plural}")
            return None

    async def one(self, resource: Resource[T], namespace: str, name: str) -> T:
        """One object. Raises NothingThere, Refused."""
        async with self.progress.doing(f"reading {resource.kind} {name}"):
            try:
                return await self.cluster.get(resource, namespace, name)
            except NotFound as error:
                where = f" in the namespace {namespace}" if namespace else ""
                raise NothingThere(f"there is no {resource.kind} {name}{where}") from error
            except KubeError as error:
                raise Refused(sentence(error, f"get {resource.plural}", namespace)) from error

    def key(self, text: str) -> tuple[str, str]:
        """Read "[NAMESPACE/]NAME"."""
        namespace, slash, name = text.rpartition("/")
        return (namespace, name) if slash else (self.namespace, name)


@asynccontextmanager
async def opened(
    *,
    kubeconfig: str,
    context: str,
    namespace: str,
    everywhere: bool,
    progress: Progress,
    clock: Callable[[], datetime],
) -> AsyncIterator[Session]:
    """Reach the cluster as kubectl would. Raises ConfigurationError, Refused."""
    credentials = await asyncio.to_thread(_credentials, kubeconfig, context)
    rng = random.Random()  # noqa: S311 - jitter, no secret
    client = HttpKubeClient(credentials, program="kubectl-lb", version=__version__, rng=rng, deadline=_DEADLINE)
    async with client:
        async with progress.doing(f"asking {credentials.server}"):
            side, date = await recognized(client, credentials.server)
        where = namespace or credentials.namespace
        yield Session(client, side, where, everywhere, date or clock(), progress)


async def recognized(cluster: Cluster, server: str) -> tuple[Literal["host", "guest"], datetime | None]:
    """Whether a cluster is a host (it knows load balancers) or a guest, and its clock. Raises Refused."""
    try:
        return "host", (await cluster.read(GROUP)).date
    except NotFound:
        pass
    except KubeError as error:
        raise Refused(sentence(error, "ask what it serves", "", server)) from error
    try:
        return "guest", (await cluster.read("/version")).date
    except KubeError as error:
        raise Refused(sentence(error, "ask for its version", "", server)) from error


def sentence(error: KubeError, verb: str, namespace: str, server: str = "") -> str:
    """What is wrong, and what to do, in one sentence."""
    where = f"in the namespace {namespace}" if namespace else "in all namespaces"
    if isinstance(error, Forbidden) and error.status == 401:
        return "the API server does not know you (401): renew the credentials of the kubeconfig, or choose --context"
    if isinstance(error, Forbidden):
        remedy = "have an administrator allow it" + ("" if namespace else ", or name a namespace with -n")
        return f"you may not {verb} {where}: {remedy}"
    if isinstance(error, NotFound):
        return f"the cluster can't {verb}: it does not know that kind; is this the right one (--context)?"
    if isinstance(error, Unavailable):
        at = f" {server}" if server else ""
        why = str(error).partition(": ")[2] or str(error)
        return f"the API server{at} can't be reached: {why}; check --kubeconfig, --context and the network"
    return f"the API server refused to {verb}: {error}"


def _credentials(kubeconfig: str, context: str) -> Credentials:
    """As kubectl: --kubeconfig, then KUBECONFIG, then ~/.kube/config, then the pod's own account."""
    paths = kubeconfig or os.environ.get("KUBECONFIG", "") or str(Path("~/.kube/config").expanduser())
    if any(Path(p).is_file() for p in paths.split(os.pathsep)):
        return from_kubeconfig(paths, context or None)
    if not kubeconfig and not context and (SERVICE_ACCOUNT / "token").exists():
        return from_service_account()
    raise ConfigurationError(f"no kubeconfig at {paths}: give the right one with --kubeconfig, or set KUBECONFIG")
