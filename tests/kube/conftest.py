"""Both clients of the contract: the fake in memory, and the real one on a real API server."""

import itertools
import random
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest

from cloudprovider.kube import credentials
from cloudprovider.kube.api import KubeClient
from cloudprovider.kube.client import HttpKubeClient
from cloudprovider.kube.fake import FakeCluster, FakeKubeClient
from tests.lab.controlplane import ControlPlane

_unique = itertools.count(int(time.time()))


def open_client(kubeconfig: Path, **options: float) -> HttpKubeClient:
    """A client for tests; made inside a running loop."""
    return HttpKubeClient(
        credentials.from_kubeconfig(str(kubeconfig)),
        program="test",
        version="0.0.0",
        rng=random.Random(1),
        **options,  # type: ignore[arg-type]  # all options that tests set are numbers
    )


def fixed_now() -> datetime:
    return datetime(2026, 1, 1, tzinfo=UTC)


@dataclass
class Side:
    """One client under test, and a namespace of this test's own; ``unique`` names cluster-scoped objects."""

    client: KubeClient
    namespace: str
    unique: Callable[[str], str]


@pytest.fixture(params=["fake", pytest.param("real", marks=pytest.mark.apiserver)])
async def side(request: pytest.FixtureRequest) -> AsyncIterator[Side]:
    number = next(_unique)

    def unique(name: str) -> str:
        return f"{name}-{number}"

    namespace = unique("contract")
    if request.param == "fake":
        yield Side(FakeKubeClient(FakeCluster(fixed_now)), namespace, unique)
        return
    plane: ControlPlane = request.getfixturevalue("control_plane")
    plane.api.create("/api/v1/namespaces", {"metadata": {"name": namespace}})
    async with open_client(plane.kubeconfig) as client:
        yield Side(client, namespace, unique)


@pytest.fixture
def cluster() -> FakeCluster:
    return FakeCluster(fixed_now)
