"""Requests are counted by the page's path in the code: what is looked at, and what somebody makes up, stand nowhere."""

import random

from aiohttp.test_utils import TestClient, TestServer

from cloudprovider.console.config import ConsoleConfig
from cloudprovider.console.server import Console
from cloudprovider.kube.fake import FakeCluster
from cloudprovider.kube.registry import Registry
from tests.console.users import FakeUser, now
from tests.kube.exposed import exposed


async def test_requests_are_counted_by_page_and_answer() -> None:
    cluster, registry = FakeCluster(now), Registry("console", "0")
    made = Console(
        ConsoleConfig(),
        lambda token: FakeUser(cluster, token),
        now=now,
        time=lambda: 0.0,
        rng=random.Random(1),
        registry=registry,
    )
    async with TestClient(TestServer(made.app)) as client:
        for path in ("/loadbalancers/secret/name", "/loadbalancers/other/one", "/made/up", "/live/loadbalancers"):
            await client.get(path, allow_redirects=False)
        await client.request("PUT", "/made/up", allow_redirects=False)
        found = await exposed(registry)
    requests = {
        (dict(labels)["method"], dict(labels)["route"]): n
        for (name, labels), n in found.items()
        if name == "cloudprovider_console_requests_total"
    }
    page = ("GET", "/loadbalancers/{namespace}/{name}")
    assert requests == {
        page: 2,
        ("GET", "unmatched"): 1,
        ("GET", "/live/loadbalancers"): 1,
        ("other", "unmatched"): 1,
    }
    timed = {
        dict(labels)["route"]
        for name, labels in found
        if name == "cloudprovider_console_request_duration_seconds_count"
    }
    assert timed == {page[1], "unmatched"}, "a live page lasts as long as somebody looks"
    assert found["cloudprovider_console_sessions", ()] == 0
