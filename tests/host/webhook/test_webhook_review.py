"""The webhook where something is wrong: with the question, with the API server behind it, with what is stored."""

import asyncio
import io
import random
import ssl
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import aiohttp
import msgspec
import pytest

from cloudprovider.core.api.pool import Allocation
from cloudprovider.core.errors import ConfigurationError, Forbidden
from cloudprovider.host.webhook import AT_ONCE, WARNING_LENGTH, AdmissionWebhook
from cloudprovider.host.webhookcertificate import Lives, renewed
from cloudprovider.host.webhookserver import BODY_LIMIT, PATH, load, serve
from cloudprovider.kube.fake import Call, FakeCluster, FakeKubeClient
from cloudprovider.kube.resources import IPBLOCKS, IPPOOLS
from tests.host.webhook.served import Json, block, load_balancer, pool
from tests.host.world import pool as stored_pool
from tests.host.world import subnet
from tests.lab import netns

SUBNET = {"subnet": "10.0.0.0/24"}
WEB = Allocation(owner="default/web", uid="u")


def review(operation: str, obj: Json | None, old: Json | None = None, *, resource: str = "ippools") -> bytes:
    name = (obj or old or {"metadata": {"name": ""}})["metadata"]["name"]
    request = {
        "uid": "review-1",
        "kind": {"group": "loadbalancer.harvesterhci.io", "version": "v1beta1", "kind": "IPPool"},
        "resource": {"group": "loadbalancer.harvesterhci.io", "version": "v1beta1", "resource": resource},
        "name": name,
        "operation": operation,
        "userInfo": {"username": "somebody", "groups": ["x"]},
        "object": obj,
        "oldObject": old,
        "dryRun": False,
    }
    return msgspec.json.encode({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": request})


@pytest.fixture
def webhook(cluster: FakeCluster) -> AdmissionWebhook:
    return AdmissionWebhook(FakeKubeClient(cluster, program="host"), deadline=0.2)


async def ask(webhook: AdmissionWebhook, body: bytes) -> Any:
    answer = msgspec.json.decode(await webhook.answer(body))
    assert (answer["apiVersion"], answer["kind"]) == ("admission.k8s.io/v1", "AdmissionReview")
    assert answer["response"]["uid"] == "review-1"
    return answer["response"]


async def test_an_answer_says_all_that_a_status_can(webhook: AdmissionWebhook) -> None:
    assert await ask(webhook, review("CREATE", pool("p", SUBNET))) == {"uid": "review-1", "allowed": True}
    response = await ask(webhook, review("CREATE", pool("p", {"subnet": "224.0.0.0/24"})))
    message = "224.0.0.0/24 can't be handed out: it is a multicast, loopback or unspecified subnet"
    assert response == {
        "uid": "review-1",
        "allowed": False,
        "status": {
            "status": "Failure",
            "code": 422,
            "reason": "Invalid",
            "message": f"spec.ranges[0].subnet: {message}",
            "details": {
                "name": "p",
                "group": "loadbalancer.harvesterhci.io",
                "kind": "IPPool",
                "causes": [{"reason": "UnusableSubnet", "message": message, "field": "spec.ranges[0].subnet"}],
            },
        },
    }
    assert webhook.reviews == {("ippools", "allowed"): 1, ("ippools", "refused"): 1}


async def test_a_change_that_touches_no_pool_reads_nothing(cluster: FakeCluster) -> None:
    client = FakeKubeClient(cluster, program="host")
    same = pool("p", SUBNET)
    assert (await ask(AdmissionWebhook(client), review("UPDATE", same, same)))["allowed"]
    assert client.requests.total() == 0


@pytest.mark.parametrize("deaf", [True, False])
async def test_without_an_api_server_pools_stay_and_load_balancers_pass(
    cluster: FakeCluster, webhook: AdmissionWebhook, deaf: bool
) -> None:
    async def fail(_: Call) -> None:
        if deaf:
            await asyncio.Event().wait()
        raise Forbidden("list ippools: no right to", status=403)

    cluster.before = fail
    why = "the API server has not answered within 0.2 s" if deaf else "list ippools: no right to"
    response = await ask(webhook, review("CREATE", pool("p", SUBNET)))
    assert not response["allowed"]
    assert (response["status"]["code"], response["status"]["reason"]) == (503, "ServiceUnavailable")
    assert response["status"]["message"] == f"what it has to be compared with can't be read now, try again: {why}"
    response = await ask(webhook, review("DELETE", None, pool("p", SUBNET)))
    assert not response["allowed"]
    response = await ask(webhook, review("CREATE", load_balancer("a"), resource="loadbalancers"))
    assert response["allowed"]
    assert response["warnings"] == [f"not checked beforehand, the controller will: {why}"]
    assert webhook.reviews == {("ippools", "unread"): 2, ("loadbalancers", "unread"): 1}


async def test_a_pool_that_can_not_be_read_is_refused_and_says_where(webhook: AdmissionWebhook) -> None:
    broken = pool("p", SUBNET, selector={"priority": "high"})
    response = await ask(webhook, review("CREATE", broken))
    assert not response["allowed"]
    assert "$.spec.selector.priority" in response["status"]["message"]


async def test_a_stored_pool_that_can_not_be_read_may_be_mended_around_its_holders(
    cluster: FakeCluster, webhook: AdmissionWebhook
) -> None:
    client = FakeKubeClient(cluster)
    await client.create(IPBLOCKS, block("p", "10.0.0.0", n5=WEB))
    broken = pool("p", SUBNET, selector={"priority": "high"})
    assert (await ask(webhook, review("UPDATE", pool("p", SUBNET), broken)))["allowed"]
    response = await ask(webhook, review("UPDATE", pool("p", {"subnet": "10.7.0.0/24"}), broken))
    assert "10.0.0.5 (default/web)" in response["status"]["message"]
    assert not (await ask(webhook, review("DELETE", None, broken)))["allowed"]
    old = load_balancer("a", listeners="none")
    assert (await ask(webhook, review("UPDATE", load_balancer("a"), old, resource="loadbalancers")))["allowed"]


async def test_a_pool_with_a_name_longer_than_a_label(cluster: FakeCluster, webhook: AdmissionWebhook) -> None:
    name = "p" * 100
    await FakeKubeClient(cluster).create(IPBLOCKS, block(name, "10.0.0.0", n5=WEB))
    await FakeKubeClient(cluster).create(IPBLOCKS, block("p" * 101, "10.0.1.0", n6=WEB))
    response = await ask(webhook, review("DELETE", None, pool(name, SUBNET)))
    assert "10.0.0.5" in response["status"]["message"]
    assert "10.0.1.6" not in response["status"]["message"]


async def test_so_many_at_once_and_the_others_wait_no_longer_than_the_deadline(
    cluster: FakeCluster, webhook: AdmissionWebhook
) -> None:
    under_way = 0

    async def hang(_: Call) -> None:
        nonlocal under_way
        under_way += 1
        await asyncio.Event().wait()

    cluster.before = hang
    bodies = [review("CREATE", pool("p", SUBNET))] * (AT_ONCE * 3)
    responses = await asyncio.gather(*(ask(webhook, body) for body in bodies))
    assert under_way == AT_ONCE
    assert {r["status"]["reason"] for r in responses} == {"ServiceUnavailable"}


async def test_what_it_has_no_rules_for_passes_with_a_warning(webhook: AdmissionWebhook) -> None:
    response = await ask(webhook, review("CREATE", pool("p", SUBNET), resource="guestclusters"))
    assert response["allowed"]
    assert response["warnings"] == ["the webhook has no rules for this: its configuration asks too much of it"]


async def test_warnings_are_short(cluster: FakeCluster, webhook: AdmissionWebhook) -> None:
    client = FakeKubeClient(cluster)
    for n in range(60):
        await client.create(IPPOOLS, stored_pool(f"pool-{n}", subnet(f"10.{n}.0.0/24"), network="default/other"))
    response = await ask(webhook, review("CREATE", load_balancer("a"), resource="loadbalancers"))
    (warning,) = response["warnings"]
    assert len(warning) == WARNING_LENGTH
    assert warning.endswith("…")


# -- over HTTPS -----------------------------------------------------------------------------------------------------


def trusting(now: datetime) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """(server's, client's)"""
    material = renewed(None, ["127.0.0.1"], now=now, lives=Lives())
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    load(server, material)
    return server, ssl.create_default_context(cadata=material.bundle.decode())


@pytest.fixture
async def url(webhook: AdmissionWebhook) -> AsyncIterator[tuple[str, aiohttp.ClientSession]]:
    server, client = trusting(datetime.now(UTC))
    address = f"127.0.0.1:{netns.free_port('', '127.0.0.1')}"
    async with (
        serve(address, server, webhook.answer),
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=client)) as session,
    ):
        yield f"https://{address}{PATH}", session


@pytest.mark.parametrize(
    ("body", "status", "says"),
    [
        (b"", 400, "no AdmissionReview of admission.k8s.io/v1"),
        (b"\xff\xfe{", 400, "no AdmissionReview"),
        (b'{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview"}', 400, "missing required field `request`"),
        (
            review("CREATE", pool("p", SUBNET)).replace(b"admission.k8s.io/v1", b"admission.k8s.io/v1beta1"),
            400,
            "`$.apiVersion`",
        ),
        (b"x" * (BODY_LIMIT + 1), 413, ""),
    ],
)
async def test_what_is_no_review(
    url: tuple[str, aiohttp.ClientSession], webhook: AdmissionWebhook, body: bytes, status: int, says: str
) -> None:
    place, session = url
    async with session.post(place, data=io.BytesIO(body), headers={"Content-Type": "application/json"}) as response:
        assert response.status == status
        assert says in await response.text()
    assert webhook.reviews.total() == 0


async def test_the_biggest_objects_that_etcd_takes_are_read(url: tuple[str, aiohttp.ClientSession]) -> None:
    place, session = url
    big = pool("p", SUBNET, description="x" * 1_500_000)
    async with session.post(place, data=io.BytesIO(review("UPDATE", big, big))) as response:
        assert response.status == 200


async def test_other_paths_and_methods_are_nothing(url: tuple[str, aiohttp.ClientSession]) -> None:
    place, session = url
    async with session.get(place) as response:
        assert response.status == 405
    async with session.post(f"{place}/x", data=b"{}") as response:
        assert response.status == 404


async def test_random_bytes_never_do_more_than_be_refused(webhook: AdmissionWebhook) -> None:
    rng = random.Random(5)
    whole = review("CREATE", pool("p", SUBNET))
    for _ in range(300):
        spoilt = bytearray(whole)
        for _ in range(rng.randint(1, 8)):
            spoilt[rng.randrange(len(spoilt))] = rng.randrange(256)
        try:
            await webhook.answer(bytes(spoilt))
        except ValueError:
            continue


async def test_a_place_that_is_taken_is_told() -> None:
    server, _ = trusting(datetime.now(UTC) - timedelta(days=1))
    address = f"127.0.0.1:{netns.free_port('', '127.0.0.1')}"
    webhook = AdmissionWebhook(FakeKubeClient(FakeCluster(lambda: datetime.now(UTC))))
    async with serve(address, server, webhook.answer):
        with pytest.raises(ConfigurationError, match="choose another with --webhook-address"):
            async with serve(address, server, webhook.answer):
                raise AssertionError("two listen on one place")
