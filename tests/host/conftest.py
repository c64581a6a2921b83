import pytest

from cloudprovider.host.clock import utc_now
from cloudprovider.kube.fake import FakeCluster, FakeKubeClient
from tests.host.world import World


@pytest.fixture
def cluster() -> FakeCluster:
    return FakeCluster(utc_now)


@pytest.fixture
def world(cluster: FakeCluster) -> World:
    """A host cluster whose API server is in memory."""
    return World(client=FakeKubeClient(cluster), connect=lambda: FakeKubeClient(cluster))
