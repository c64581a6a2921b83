"""What an operator does to tenants on a host cluster, step by step, and to a tenant that is connected."""

import asyncio
import base64
import random
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from cloudprovider.bridge import authority, client
from cloudprovider.bridge.api import Reason
from cloudprovider.bridge.certificates import KeyPair
from cloudprovider.bridge.inspection import certificates, is_signed_by, names_of, uris_of
from cloudprovider.bridge.secrets import CERT_MANAGER
from cloudprovider.cli.tenant import TenantLimits, guest_objects
from cloudprovider.cli.tenantadmin import Issued, TenantAdmin, put_guest
from cloudprovider.core.api.guestcluster import CertificateRecord, GuestCluster, GuestClusterSpec, GuestClusterStatus
from cloudprovider.core.api.kubernetes import Namespace, Secret
from cloudprovider.core.api.meta import ObjectMeta
from cloudprovider.core.errors import BridgeError, ConfigurationError, NotFound
from cloudprovider.core.exchange import Tenant
from cloudprovider.core.naming import CA_SECRET, GUEST_SECRET, SERVER_SECRET
from cloudprovider.core.permissions import SYSTEM
from cloudprovider.core.tenants import row, state
from cloudprovider.host.certificates import Certificates
from cloudprovider.host.clock import utc_now
from cloudprovider.kube.events import EventRecorder
from cloudprovider.kube.fake import FakeCluster, FakeKubeClient
from cloudprovider.kube.resources import GUESTCLUSTERS, NAMESPACES, SECRETS
from tests.bridge.tls import DAY, DOMAIN
from tests.guest.chain import Wire, wired
from tests.guest.world import TENANT
from tests.host.world import eventually

SHOP = Tenant("shops", "shop")
LIMITS = TenantLimits(node_cidrs=["10.0.8.0/25"], networks=["default/vlan8"])
NOW = datetime(2026, 1, 10, tzinfo=UTC)


class Operator:
    """Somebody with the command line, at a host cluster that is just being set up."""

    def __init__(self, cluster: FakeCluster | None = None, folder: Path | None = None) -> None:
        self.cluster = cluster or FakeCluster(utc_now)
        self.cluster.documents["/version"] = b"{}"
        self.client = FakeKubeClient(self.cluster, program="kubectl")
        self.told: list[str] = []
        self.admin = TenantAdmin(self.client, folder=folder, trust_domain=DOMAIN, clock=utc_now, tell=self.told.append)

    async def namespace(self, name: str = SYSTEM) -> None:
        await self.client.create(NAMESPACES, Namespace(metadata=ObjectMeta(name=name)))

    async def create(self, limits: TenantLimits = LIMITS, *, create_namespace: bool = True) -> Issued:
        return await self.admin.create(SHOP, limits, validity=365 * DAY, create_namespace=create_namespace)

    async def ca(self) -> authority.Authority:
        return authority.read((await self.client.get(SECRETS, SYSTEM, CA_SECRET)).data, CA_SECRET)


@pytest.fixture
async def operator() -> Operator:
    made = Operator()
    await made.namespace()
    return made


async def test_a_tenant_from_nothing(operator: Operator) -> None:
    issued = await operator.create()
    assert uris_of(issued.pair) == {"spiffe://harvester.local/ns/shops/cluster/shop"}
    ca = await operator.ca()
    assert is_signed_by(issued.pair, certificates(ca.signing.certificate))
    assert issued.trusted == ca.trusted
    cluster = await operator.client.get(GUESTCLUSTERS, "shops", "shop")
    assert (cluster.spec.node_cidrs, cluster.spec.networks, cluster.spec.pools) == (
        ["10.0.8.0/25"],
        ["default/vlan8"],
        [],
    )
    assert [line.partition(" ")[0] for line in operator.told] == ["a", "namespace", "GuestCluster"]


async def test_a_run_that_broke_off_is_run_again(operator: Operator) -> None:
    first = await operator.create()
    operator.told.clear()
    again = await operator.create()
    assert is_signed_by(again.pair, certificates(first.trusted))
    assert operator.told == []


async def test_other_limits_are_not_written_over(operator: Operator) -> None:
    await operator.create()
    with pytest.raises(ConfigurationError, match=r"with other limits.*tenant rotate shop"):
        await operator.create(TenantLimits(node_cidrs=["10.0.9.0/25"]))
    assert (await operator.client.get(GUESTCLUSTERS, "shops", "shop")).spec.node_cidrs == ["10.0.8.0/25"]


async def test_a_cluster_that_is_no_host() -> None:
    with pytest.raises(ConfigurationError, match=r"manifests/host/namespace\.yaml"):
        await Operator().create()


async def test_a_ca_in_a_folder_stays_there(tmp_path: Path) -> None:
    operator = Operator(folder=tmp_path / "ca")
    await operator.namespace()
    issued = await operator.create()
    assert issued.trusted == (tmp_path / "ca" / "ca.crt").read_bytes()
    with pytest.raises(NotFound):
        await operator.client.get(SECRETS, SYSTEM, CA_SECRET)


async def test_no_second_ca_comes_up_beside_the_bridges(tmp_path: Path) -> None:
    """The bridge's certificate is by the folder's CA: whoever forgets the folder must not get a CA that it refuses."""
    by_folder = Operator(folder=tmp_path / "ca")
    await by_folder.namespace()
    await by_folder.admin.server_certificate(["192.0.2.1"], validity=90 * DAY)
    forgetful = Operator(by_folder.cluster)
    with pytest.raises(ConfigurationError, match="by another CA"):
        await forgetful.create()
    with pytest.raises(NotFound):
        await forgetful.ca()
    with pytest.raises(ConfigurationError, match="by another CA"):
        await Operator(by_folder.cluster, folder=tmp_path / "wrong").create()
    assert (await by_folder.create()).trusted == (tmp_path / "ca" / "ca.crt").read_bytes()


async def test_the_bridges_certificate(operator: Operator) -> None:
    await operator.admin.server_certificate(["192.0.2.1"], validity=90 * DAY)
    await operator.admin.server_certificate(["192.0.2.1", "192.0.2.2"], validity=90 * DAY)
    secret = await operator.client.get(SECRETS, SYSTEM, SERVER_SECRET)
    assert secret.type == "kubernetes.io/tls"
    pair = KeyPair(*(base64.b64decode(secret.data[key]) for key in ("tls.crt", "tls.key")))
    assert names_of(pair) == {"192.0.2.1", "192.0.2.2"}
    assert base64.b64decode(secret.data["ca.crt"]) == (await operator.ca()).trusted


async def test_what_cert_manager_keeps_is_not_written_over(operator: Operator) -> None:
    await operator.create()
    for name in (SERVER_SECRET, CA_SECRET):
        metadata = {"metadata": {"annotations": {CERT_MANAGER: name}}}
        if name == SERVER_SECRET:
            await operator.client.create(SECRETS, Secret(metadata=ObjectMeta(name=name, namespace=SYSTEM)))
        await operator.client.merge_patch(SECRETS, SYSTEM, name, metadata)
    with pytest.raises(ConfigurationError, match="cert-manager keeps"):
        await operator.admin.server_certificate(["192.0.2.1"], validity=90 * DAY)
    with pytest.raises(ConfigurationError, match="cert-manager keeps"):
        await operator.admin.replace_ca(finish=False)


async def test_a_ca_is_replaced_in_two_steps(operator: Operator) -> None:
    await operator.create()
    first = await operator.ca()
    with pytest.raises(ConfigurationError, match="no CA is being replaced"):
        await operator.admin.replace_ca(finish=True)
    await operator.admin.replace_ca(finish=False)
    both = await operator.ca()
    assert set(certificates(both.trusted)) > set(certificates(first.trusted))
    with pytest.raises(ConfigurationError, match="--finish"):
        await operator.admin.replace_ca(finish=False)
    await operator.admin.replace_ca(finish=True)
    last = await operator.ca()
    assert (last.signing, last.serving) == (both.signing, both.signing)
    assert set(certificates(last.trusted)) == set(certificates(both.signing.certificate))
    assert set((await operator.client.get(SECRETS, SYSTEM, CA_SECRET)).data) == {"tls.crt", "tls.key", "ca.crt"}


async def test_the_second_step_waits_for_the_host_and_every_guest(operator: Operator) -> None:
    await operator.admin.server_certificate(["192.0.2.1"], validity=90 * DAY)
    await operator.create()
    await operator.admin.replace_ca(finish=False)
    with pytest.raises(ConfigurationError, match="has not put the new CA into the Secret"):
        await operator.admin.replace_ca(finish=True)
    rng = random.Random(1)
    events = EventRecorder(operator.client, component="test", instance="t", now=utc_now, rng=rng)
    await Certificates(operator.client, namespace=SYSTEM, events=events, now=utc_now, rng=rng).check()
    for made, fine in ((utc_now() - DAY, False), (utc_now(), True)):
        begins = f"{made:%Y-%m-%dT%H:%M:%SZ}"
        patch = {"status": {"certificate": {"fingerprint": "ab" * 32, "notBefore": begins}}}
        await operator.client.merge_patch(GUESTCLUSTERS, "shops", "shop", patch, subresource="status")
        if not fine:
            with pytest.raises(ConfigurationError, match="shops/shop are by the old CA"):
                await operator.admin.replace_ca(finish=True)
    await operator.admin.replace_ca(finish=True)


async def test_a_guest_keeps_its_settings_when_the_certificate_changes(operator: Operator) -> None:
    guest = FakeKubeClient(FakeCluster(utc_now), program="kubectl")
    issued = await operator.create()
    await put_guest(guest, guest_objects(issued.pair, issued.trusted, "192.0.2.1:30843"))
    first = (await guest.get(SECRETS, SYSTEM, GUEST_SECRET)).data
    again = await operator.admin.rotate(SHOP, validity=DAY)
    await put_guest(guest, guest_objects(again.pair, again.trusted, ""))
    second = (await guest.get(SECRETS, SYSTEM, GUEST_SECRET)).data
    assert second["config.yaml"] == first["config.yaml"]
    assert second["tls.crt"] != first["tls.crt"]


async def test_there_is_no_such_tenant(operator: Operator) -> None:
    with pytest.raises(ConfigurationError, match="no GuestCluster shops/shop here"):
        await operator.admin.revoke(SHOP, delete_load_balancers=False)
    with pytest.raises(ConfigurationError, match="no GuestCluster shops/shop here"):
        await operator.admin.rotate(SHOP, validity=DAY)


async def test_no_certificate_is_issued_that_would_be_refused(operator: Operator) -> None:
    await operator.create()
    await operator.admin.revoke(SHOP, delete_load_balancers=False)
    until = datetime.fromisoformat((await operator.client.get(GUESTCLUSTERS, "shops", "shop")).spec.revoked_before)
    issued = await operator.admin.rotate(SHOP, validity=DAY)
    assert certificates(issued.pair.certificate)[0].not_valid_before_utc >= until
    far = f"{utc_now() + DAY:%Y-%m-%dT%H:%M:%SZ}"
    await operator.client.merge_patch(GUESTCLUSTERS, "shops", "shop", {"spec": {"revokedBefore": far}})
    with pytest.raises(ConfigurationError, match=f"revoked until {far}"):
        await operator.admin.rotate(SHOP, validity=DAY)


# --- a tenant that is connected ------------------------------------------------------------------------------------


@pytest.fixture
async def wire(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Wire]:
    monkeypatch.setattr(client, "FILES_SECONDS", 0.05)
    monkeypatch.setattr(client, "DIAGNOSIS_SECONDS", 0.1)
    async with wired(tmp_path) as made:
        yield made


@pytest.mark.parametrize("delete", [False, True])
async def test_revoked_at_once_and_let_in_again(wire: Wire, tmp_path: Path, *, delete: bool) -> None:
    """A standing connection is cut; what is forwarded goes on unless the operator says otherwise; a new certificate is
    all that it takes to go on."""
    folder = tmp_path / "ca"
    folder.mkdir(mode=0o700)
    for name, content in (("ca.crt", wire.authority.ca.certificate), ("ca.key", wire.authority.ca.key)):
        (folder / name).write_bytes(content)
        (folder / name).chmod(0o600)
    world = wire.chain.world.client
    assert isinstance(world, FakeKubeClient)
    operator = Operator(world._cluster, folder)
    bridge = wire.client(wire.authority.write("client", wire.authority.client()))
    async with wire.guest.leading(bridge) as leadership:
        service = await wire.guest.create()
        had = await wire.guest.until_ready()
        before = await wire.chain.versions()
        assert before
        loop = asyncio.get_running_loop()
        began = loop.time()
        await operator.admin.revoke(TENANT, delete_load_balancers=delete)
        await eventually(lambda: leadership.host.error is not None, "the connection to be cut")
        assert loop.time() - began < 2.0, "at once"
        assert leadership.host.error is not None
        assert leadership.host.error.reason == Reason.CERTIFICATE_REVOKED
        with pytest.raises(BridgeError) as refused:
            await bridge.delete(wire.guest.key(service))
        assert refused.value.reason == Reason.CERTIFICATE_REVOKED
        if delete:
            await eventually(lambda: not wire.chain.host.caches.load_balancers_of(TENANT), "nothing to be left")
            assert any("1 load balancers deleted" in line for line in operator.told)
        else:
            assert await wire.chain.versions() == before
            assert any("go on as they are" in line for line in operator.told)
        issued = await operator.admin.rotate(TENANT, validity=DAY)
        wire.authority.write("client", issued.pair)
        await eventually(lambda: leadership.host.connected, "the guest to be let in again")
        await eventually(lambda: bool(wire.chain.host.caches.load_balancers_of(TENANT)), "it to be served again")
        assert await wire.guest.until_ready() == had


# --- what the list says --------------------------------------------------------------------------------------------


def tenant(status: GuestClusterStatus | None = None, **spec: object) -> GuestCluster:
    return GuestCluster(
        metadata=ObjectMeta(name="shop", namespace="shops"),
        spec=GuestClusterSpec(**spec),  # type: ignore[arg-type]
        status=status or GuestClusterStatus(),
    )


def seen(ends: timedelta = 200 * DAY, ago: timedelta = timedelta()) -> GuestClusterStatus:
    stamp = "%Y-%m-%dT%H:%M:%SZ"
    return GuestClusterStatus(
        last_seen_time=f"{NOW - ago:{stamp}}",
        guest_version="1.2.3",
        certificate=CertificateRecord(
            fingerprint="ab" * 32, not_before=f"{NOW - 30 * DAY:{stamp}}", not_after=f"{NOW + ends:{stamp}}"
        ),
    )


LISTED: Sequence[tuple[GuestCluster, str]] = (
    (tenant(seen()), "Ready"),
    (tenant(seen(ends=29 * DAY)), "Expiring"),
    (tenant(seen(ends=-DAY)), "Expired"),
    (tenant(), "New"),
    (tenant(seen(ago=timedelta(minutes=6))), "Silent"),
    (tenant(seen(), revoked_before="2026-01-01T00:00:00Z"), "Revoked"),
    (tenant(seen(), revoked_before="2025-12-01T00:00:00Z"), "Ready"),
    (tenant(seen(), revoked_fingerprints=["ab" * 32]), "Revoked"),
)


@pytest.mark.parametrize(("cluster", "says"), LISTED)
def test_states(cluster: GuestCluster, says: str) -> None:
    assert state(cluster, NOW) == says


def test_a_row() -> None:
    assert row(tenant(seen()), NOW, "5s") == ("shops", "shop", "Ready", "2026-07-29", "5s", "1.2.3")
    assert row(tenant(), NOW, "-") == ("shops", "shop", "New", "-", "-", "-")
