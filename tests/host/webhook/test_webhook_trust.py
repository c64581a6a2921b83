"""The Secret, the configuration and what is shown: agreed upon by several copies, and put right whatever happens."""

import asyncio
import base64
import random
from datetime import timedelta

import msgspec
import pytest

from cloudprovider.core.api.admission import (
    RegisteredWebhook,
    ValidatingWebhookConfiguration,
    WebhookClientConfig,
    WebhookService,
)
from cloudprovider.core.api.kubernetes import Secret
from cloudprovider.core.api.meta import ObjectMeta
from cloudprovider.core.errors import ConfigurationError, Conflict, NotFound, Unavailable
from cloudprovider.host.clock import utc_now
from cloudprovider.host.webhookcertificate import Lives, Material, read
from cloudprovider.host.webhooktrust import CONFIGURATION, SECRET, WebhookTrust, hosts_of
from cloudprovider.kube.fake import Call, FakeCluster, FakeKubeClient
from cloudprovider.kube.resources import SECRETS, WEBHOOK_CONFIGURATIONS
from tests.host.world import eventually

NAMESPACE = "system"
NEVER = Lives()


def configuration(
    *, service: str = "hook", url: str = "https://127.0.0.1:9443/validate"
) -> ValidatingWebhookConfiguration:
    by_service = WebhookClientConfig(service=WebhookService(namespace=NAMESPACE, name=service))
    return ValidatingWebhookConfiguration(
        api_version=WEBHOOK_CONFIGURATIONS.api_version,
        kind=WEBHOOK_CONFIGURATIONS.kind,
        metadata=ObjectMeta(name=CONFIGURATION),
        webhooks=[
            RegisteredWebhook(name="pools.example.org", client_config=by_service),
            RegisteredWebhook(name="lbs.example.org", client_config=WebhookClientConfig(url=url)),
        ],
    )


class Copy:
    """One copy of the program: what it shows, and what was trusted at the moment when it began to."""

    def __init__(self, cluster: FakeCluster, *, lives: Lives = NEVER) -> None:
        self.cluster = cluster
        self.client = FakeKubeClient(cluster, program="host")
        self.shown: list[Material] = []
        self.trust = WebhookTrust(
            self.client,
            self.shown.append,
            namespace=NAMESPACE,
            now=utc_now,
            rng=random.Random(1),
            lives=lives,
            check_seconds=0.02,
        )


@pytest.fixture
async def cluster(cluster: FakeCluster) -> FakeCluster:
    client = FakeKubeClient(cluster, program="kubectl")
    await client.create(SECRETS, Secret(metadata=ObjectMeta(name=SECRET, namespace=NAMESPACE)))
    await client.create(WEBHOOK_CONFIGURATIONS, configuration())
    return cluster


async def bundles(cluster: FakeCluster) -> set[bytes]:
    found = await FakeKubeClient(cluster).get(WEBHOOK_CONFIGURATIONS, "", CONFIGURATION)
    return {base64.b64decode(w.client_config.ca_bundle) for w in found.webhooks}


async def stored(cluster: FakeCluster) -> Material | None:
    return read((await FakeKubeClient(cluster).get(SECRETS, NAMESPACE, SECRET)).data)


async def test_the_first_look_makes_announces_and_shows(cluster: FakeCluster) -> None:
    copy = Copy(cluster)
    await copy.trust.check()
    assert copy.shown == [await stored(cluster)]
    assert await bundles(cluster) == {copy.shown[0].bundle}
    client = FakeKubeClient(cluster)
    webhooks = (await client.get(WEBHOOK_CONFIGURATIONS, "", CONFIGURATION)).webhooks
    assert [w.client_config.url for w in webhooks] == ["", "https://127.0.0.1:9443/validate"], "the rest stays"


async def test_a_look_at_what_is_well_writes_nothing(cluster: FakeCluster) -> None:
    copy = Copy(cluster)
    await copy.trust.check()
    writes = copy.client.requests.total(verb="patch") + copy.client.requests.total(verb="apply")
    await copy.trust.check()
    assert copy.client.requests.total(verb="patch") + copy.client.requests.total(verb="apply") == writes == 2
    assert len(copy.shown) == 1


async def test_copies_that_begin_together_show_the_same(cluster: FakeCluster) -> None:
    """Both have read the empty Secret before either writes: one loses, and takes the other's."""
    copies = [Copy(cluster), Copy(cluster)]
    gathered = asyncio.Barrier(2)

    async def meet(call: Call) -> None:
        if call.verb == "patch" and call.resource == SECRETS.plural:
            async with asyncio.timeout(5):
                await gathered.wait()

    cluster.before = meet
    first, second = await asyncio.gather(*(c.trust.check() for c in copies), return_exceptions=True)
    cluster.before = None
    assert [type(e) for e in (first, second) if e is not None] == [Conflict]
    for copy in copies:
        await copy.trust.check()
    assert [c.shown for c in copies] == [[await stored(cluster)]] * 2


async def test_a_copy_takes_over_what_another_has_renewed(cluster: FakeCluster) -> None:
    one, other = Copy(cluster), Copy(cluster)
    await one.trust.check()
    await other.trust.check()
    soon = Copy(cluster, lives=Lives(serving=timedelta(days=365)))  # due at once, by its reckoning
    await soon.trust.check()
    assert soon.shown[0] != one.shown[0]
    await one.trust.check()
    assert one.shown[-1] == soon.shown[0] == await stored(cluster)


async def test_it_is_trusted_before_it_is_shown(cluster: FakeCluster) -> None:
    copy = Copy(cluster)

    async def refuse(call: Call) -> None:
        if call.verb == "apply":
            raise Unavailable("no answer")

    cluster.before = refuse
    with pytest.raises(Unavailable):
        await copy.trust.check()
    assert copy.shown == []
    cluster.before = None
    await copy.trust.check()
    assert len(copy.shown) == 1


async def test_a_bundle_that_somebody_has_taken_away_comes_back(cluster: FakeCluster) -> None:
    copy = Copy(cluster)
    await copy.trust.check()
    client = FakeKubeClient(cluster, program="kubectl")
    found = await client.get(WEBHOOK_CONFIGURATIONS, "", CONFIGURATION)
    await client.replace(WEBHOOK_CONFIGURATIONS, msgspec.structs.replace(configuration(), metadata=found.metadata))
    assert await bundles(cluster) == {b""}
    await copy.trust.check()
    assert await bundles(cluster) == {copy.shown[0].bundle}
    assert len(copy.shown) == 1


@pytest.mark.parametrize("data", [None, {"tls.crt": "bm9uc2Vuc2U="}])
async def test_a_secret_that_somebody_has_spoilt_is_made_anew(
    cluster: FakeCluster, data: dict[str, str] | None
) -> None:
    copy = Copy(cluster)
    await copy.trust.check()
    client = FakeKubeClient(cluster, program="kubectl")
    await client.merge_patch(SECRETS, NAMESPACE, SECRET, {"data": None})
    if data:
        await client.merge_patch(SECRETS, NAMESPACE, SECRET, {"data": data})
    await copy.trust.check()
    assert copy.shown[-1] == await stored(cluster)
    assert len(copy.shown) == 2
    assert await bundles(cluster) == {copy.shown[-1].bundle}


async def test_it_works_until_cancelled_and_survives_what_fails(
    cluster: FakeCluster, caplog: pytest.LogCaptureFixture
) -> None:
    copy = Copy(cluster)
    failing = True

    async def fail(call: Call) -> None:
        if failing:
            raise NotFound("the Secret is missing", status=404)

    cluster.before = fail
    task = asyncio.create_task(copy.trust.run())
    try:
        await eventually(lambda: copy.client.requests.total() >= 2, "it tries again")
        failing = False
        await eventually(lambda: len(copy.shown) == 1)
    finally:
        task.cancel()
        await asyncio.wait([task])
    told = [r for r in caplog.records if "can't be seen to" in r.getMessage()]
    assert len(told) == 1, "the same trouble is told once"


def test_the_names_are_those_that_the_api_server_calls() -> None:
    assert hosts_of(configuration()) == ["127.0.0.1", "hook.system.svc"]
    assert hosts_of(configuration(url="https://[::1]:9443/validate")) == ["::1", "hook.system.svc"]
    with pytest.raises(ConfigurationError, match="apply manifests/host again"):
        hosts_of(ValidatingWebhookConfiguration())


async def test_a_configuration_that_goes_meanwhile_does_not_come_back(cluster: FakeCluster) -> None:
    copy = Copy(cluster)

    async def remove(call: Call) -> None:
        if call.verb == "apply" and call.program == "host":
            await FakeKubeClient(cluster, program="kubectl").delete(WEBHOOK_CONFIGURATIONS, "", CONFIGURATION)

    cluster.before = remove
    with pytest.raises(Conflict):
        await copy.trust.check()
    with pytest.raises(NotFound):
        await FakeKubeClient(cluster).get(WEBHOOK_CONFIGURATIONS, "", CONFIGURATION)
