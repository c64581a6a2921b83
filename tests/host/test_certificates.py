"""The host renews the bridge's certificate by the CA in its Secret, and tells it whom to trust; what is not its, it
leaves alone."""

import base64
import random
from datetime import datetime, timedelta

import pytest

from cloudprovider.bridge import authority
from cloudprovider.bridge.authority import CERTIFICATE, KEY, TRUSTED, Authority
from cloudprovider.bridge.certificates import KeyPair, issue_server
from cloudprovider.bridge.inspection import certificates, end_of, is_signed_by, names_of
from cloudprovider.bridge.secrets import CERT_MANAGER, text
from cloudprovider.core.api.kubernetes import Secret
from cloudprovider.core.api.meta import ObjectMeta
from cloudprovider.core.errors import ConfigurationError
from cloudprovider.core.naming import CA_SECRET, SERVER_SECRET
from cloudprovider.host.certificates import Certificates
from cloudprovider.host.clock import utc_now
from cloudprovider.kube.events import EventRecorder
from cloudprovider.kube.fake import FakeCluster, FakeKubeClient
from cloudprovider.kube.resources import SECRETS
from tests.bridge.tls import DAY

NAMESPACE = "system"


class World:
    """The two Secrets, and the host's part that sees to them."""

    def __init__(self, cluster: FakeCluster) -> None:
        self.client = FakeKubeClient(cluster, program="host")
        self.ahead = timedelta()
        rng = random.Random(1)
        self.events = EventRecorder(self.client, component="test", instance="t", now=utc_now, rng=rng)
        self.part = Certificates(self.client, namespace=NAMESPACE, events=self.events, now=self.now, rng=rng)

    def now(self) -> datetime:
        return utc_now() + self.ahead

    async def put(self, name: str, data: dict[str, str], **annotations: str) -> None:
        metadata = ObjectMeta(name=name, namespace=NAMESPACE, annotations=annotations)
        await self.client.create(SECRETS, Secret(metadata=metadata, data=data))

    async def change_ca(self, ca: Authority) -> None:
        await self.client.merge_patch(SECRETS, NAMESPACE, CA_SECRET, {"data": authority.data_of(ca)})

    async def shown(self) -> tuple[KeyPair, bytes]:
        data = (await self.client.get(SECRETS, NAMESPACE, SERVER_SECRET)).data
        found = {key: base64.b64decode(value) for key, value in data.items()}
        return KeyPair(found[CERTIFICATE], found[KEY]), found[TRUSTED]


@pytest.fixture
def ca() -> Authority:
    return authority.make(utc_now())


@pytest.fixture
def world(cluster: FakeCluster) -> World:
    return World(cluster)


def of_server(ca: Authority) -> dict[str, str]:
    pair = issue_server(ca.serving, ["192.0.2.1", "bridge.example"], now=utc_now(), validity=90 * DAY)
    return {CERTIFICATE: text(pair.certificate), KEY: text(pair.key), TRUSTED: text(ca.trusted)}


async def test_the_bridges_certificate_is_renewed_in_time(world: World, ca: Authority) -> None:
    await world.put(CA_SECRET, authority.data_of(ca))
    await world.put(SERVER_SECRET, of_server(ca))
    first, _ = await world.shown()
    world.ahead = 59 * DAY
    await world.part.check()
    assert (await world.shown())[0] == first
    world.ahead = 61 * DAY
    await world.part.check()
    second, trusted = await world.shown()
    assert second != first
    assert names_of(second) == {"192.0.2.1", "bridge.example"}
    assert end_of(second) > end_of(first) + 50 * DAY
    assert trusted == ca.trusted
    assert [e.reason for e in list(world.events._queue._queue)] == ["CertificateRenewed"]  # type: ignore[attr-defined]


async def test_what_is_trusted_follows_the_ca(world: World, ca: Authority) -> None:
    await world.put(CA_SECRET, authority.data_of(ca))
    await world.put(SERVER_SECRET, of_server(ca))
    first, _ = await world.shown()
    two = authority.replaced(ca, utc_now())
    await world.change_ca(two)
    await world.part.check()
    same, trusted = await world.shown()
    assert same == first, "guests trust the old CA only"
    assert set(certificates(trusted)) == set(certificates(two.trusted))
    one = authority.settled(two)
    await world.client.delete(SECRETS, NAMESPACE, CA_SECRET)
    await world.put(CA_SECRET, authority.data_of(one))
    await world.part.check()
    last, trusted = await world.shown()
    assert is_signed_by(last, certificates(one.signing.certificate))
    assert trusted == one.trusted


async def test_what_cert_manager_keeps_is_left_to_it(world: World, ca: Authority) -> None:
    await world.put(CA_SECRET, authority.data_of(ca))
    await world.put(SERVER_SECRET, of_server(ca), **{CERT_MANAGER: "cloudprovider-bridge-tls"})
    before = await world.shown()
    world.ahead = 89 * DAY
    await world.part.check()
    assert await world.shown() == before


async def test_without_a_ca_on_the_cluster_nothing_is_done(world: World, ca: Authority) -> None:
    await world.put(SERVER_SECRET, of_server(ca))
    before = await world.shown()
    world.ahead = 89 * DAY
    await world.part.check()
    assert await world.shown() == before


async def test_without_a_secret_of_the_bridge_nothing_is_done(world: World, ca: Authority) -> None:
    await world.put(CA_SECRET, authority.data_of(ca))
    await world.part.check()


async def test_a_ca_that_no_guest_knows_locks_none_out(world: World, ca: Authority) -> None:
    await world.put(SERVER_SECRET, of_server(ca))
    await world.put(CA_SECRET, authority.data_of(authority.make(utc_now())))
    before = await world.shown()
    world.ahead = 89 * DAY
    with pytest.raises(ConfigurationError, match="by another CA"):
        await world.part.check()
    assert await world.shown() == before


async def test_a_damaged_ca_is_told(world: World, ca: Authority) -> None:
    data = authority.data_of(ca)
    await world.put(CA_SECRET, data | {"tls.key": ""})
    with pytest.raises(ConfigurationError, match=f"Secret {NAMESPACE}/{CA_SECRET}"):
        await world.part.check()
