"""A guest's certificate is renewed in time, by a host on a real connection; who renews it, and what is told of it."""

import asyncio
import base64
import logging
import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from cloudprovider.bridge import authority
from cloudprovider.bridge.api import Reason
from cloudprovider.bridge.authority import CERTIFICATE, KEY, TRUSTED
from cloudprovider.bridge.certificates import KeyPair
from cloudprovider.bridge.inspection import certificates, is_signed_by
from cloudprovider.bridge.secrets import CERT_MANAGER
from cloudprovider.bridge.tlsfiles import CLIENT, TlsFiles, TlsPaths
from cloudprovider.core.api.kubernetes import Event, Secret
from cloudprovider.core.api.meta import ObjectMeta
from cloudprovider.core.errors import BridgeError, ConfigurationError, NotFound
from cloudprovider.core.naming import CA_SECRET, GUEST_SECRET, RENEWED_SECRET
from cloudprovider.core.permissions import SYSTEM
from cloudprovider.guest.renewal import DUE, Renewal
from cloudprovider.kube.api import KubeClient
from cloudprovider.kube.events import EventRecorder
from cloudprovider.kube.resources import SECRETS
from tests.bridge.tls import DAY, now
from tests.guest.chain import CountingBridge, Wire
from tests.guest.world import TENANT
from tests.host.world import eventually


@dataclass
class Guest:
    """A guest's program, as far as certificates go: the operator's files, the Secret, and where that is mounted."""

    wire: Wire
    folder: Path
    client: KubeClient
    ahead: timedelta = timedelta()
    shipped: TlsPaths = field(init=False)
    bridge: CountingBridge = field(init=False)
    events: EventRecorder = field(init=False)
    renewal: Renewal = field(init=False)

    def __post_init__(self) -> None:
        self.mounted = TlsPaths(*(self.folder / name for name in (CERTIFICATE, KEY, TRUSTED)))
        self.folder.mkdir()
        self.shipped = self.wire.authority.write(
            "shipped", self.wire.authority.client(validity=90 * DAY, made=now() - DAY / 24)
        )
        paths = replace(self.shipped, renewed=self.mounted)
        self.bridge = self.wire.client(paths)
        self.events = EventRecorder(self.client, component="test", instance="t", now=now, rng=random.Random(1))
        self.renewal = Renewal(
            self.client,
            self.bridge,
            namespace=SYSTEM,
            secret=RENEWED_SECRET,
            files=TlsFiles(paths, CLIENT),
            events=self.events,
            now=self.now,
            rng=random.Random(1),
            check_seconds=0.02,
        )

    def now(self) -> datetime:
        return now() + self.ahead

    async def kept(self) -> dict[str, bytes]:
        """What the Secret holds."""
        found = await self.client.get(SECRETS, SYSTEM, RENEWED_SECRET)
        return {key: base64.b64decode(value) for key, value in found.data.items()}

    async def mount(self) -> None:
        """What a kubelet does after a while."""
        for name, content in (await self.kept()).items():
            fresh = self.folder / f"..{name}"
            fresh.write_bytes(content)
            fresh.replace(self.folder / name)

    async def until_shown(self) -> None:
        """Wait until the host is shown what was mounted."""
        kept = await self.kept()
        wanted = KeyPair(kept[CERTIFICATE], kept[KEY]).fingerprint
        async with asyncio.timeout(10):
            while self.seen() != wanted:
                await self.bridge.connect()
                await asyncio.sleep(0.02)  # between two looks

    def seen(self) -> str:
        """The certificate that the host has seen last."""
        found = self.wire.chain.host.caches.guest_cluster(TENANT)
        certificate = found.status.certificate if found is not None else None
        return certificate.fingerprint if certificate is not None else ""

    def said(self) -> list[Event]:
        found = []
        while not self.events._queue.empty():
            found.append(self.events._queue.get_nowait())
        return found


@pytest.fixture
async def guest(wire: Wire, tmp_path: Path) -> Guest:
    await wire.guest.user.create(SECRETS, Secret(metadata=ObjectMeta(name=RENEWED_SECRET, namespace=SYSTEM)))
    return Guest(wire, tmp_path / "mounted", wire.guest.guest)


async def offered(wire: Wire, ca: authority.Authority | None = None) -> None:
    """The host has the tenants' CA."""
    data = authority.data_of(ca or authority.of(wire.authority.ca))
    client = wire.chain.world.client
    try:
        await client.merge_patch(SECRETS, SYSTEM, CA_SECRET, {"data": data})
    except NotFound:
        await client.create(SECRETS, Secret(metadata=ObjectMeta(name=CA_SECRET, namespace=SYSTEM), data=data))


async def test_nothing_is_done_before_it_is_due(wire: Wire, guest: Guest) -> None:
    await offered(wire)
    guest.ahead = DUE[0] * 89 * DAY
    await guest.renewal.check()
    assert await guest.kept() == {}
    assert not guest.said()


async def test_it_is_renewed_and_used_without_a_restart(wire: Wire, guest: Guest) -> None:
    await offered(wire)
    before = guest.shipped.certificate.read_bytes()
    async with wire.guest.leading(guest.bridge):
        await wire.guest.create()
        had = await wire.guest.until_ready()
        guest.ahead = 64 * DAY  # what is issued there begins before now here: the host's clock counts for that
        await guest.renewal.check()
        kept = await guest.kept()
        new = KeyPair(kept[CERTIFICATE], kept[KEY])
        (event,) = guest.said()
        assert (event.type, event.reason) == ("Normal", "CertificateRenewed")
        assert event.involved_object.name == RENEWED_SECRET
        assert f"{certificates(new.certificate)[0].not_valid_after_utc:%Y-%m-%d}" in event.message
        await guest.mount()
        # By the stream: nobody else connects here.
        await eventually(lambda: guest.seen() == new.fingerprint, "the host to see the new certificate")
        assert await wire.guest.ips() == had
    assert guest.shipped.certificate.read_bytes() == before, "the operator's file is nobody else's"
    assert kept[KEY] != guest.shipped.key.read_bytes()


async def test_a_secret_that_is_not_mounted_yet_is_not_renewed_again(wire: Wire, guest: Guest) -> None:
    await offered(wire)
    guest.ahead = 64 * DAY
    await guest.renewal.check()
    first = await guest.kept()
    guest.ahead = timedelta()
    await guest.renewal.check()
    assert await guest.kept() == first


@pytest.mark.parametrize("key", [CERTIFICATE, KEY, TRUSTED])
@pytest.mark.parametrize("content", ["bm90aGluZw==", "%", None])
async def test_what_was_kept_and_is_spoilt_is_made_anew(
    wire: Wire, guest: Guest, key: str, content: str | None
) -> None:
    await offered(wire)
    guest.ahead = 64 * DAY
    await guest.renewal.check()
    spoilt = await wire.guest.user.merge_patch(SECRETS, SYSTEM, RENEWED_SECRET, {"data": {key: content}})
    shown, _ = guest.renewal._newest(spoilt)
    assert shown.certificate == guest.shipped.certificate.read_bytes(), "what counts is what can be used"
    await guest.renewal.check()
    kept = await guest.kept()
    await guest.mount()
    await guest.until_shown()
    assert is_signed_by(KeyPair(kept[CERTIFICATE], kept[KEY]), certificates(kept[TRUSTED]))


async def test_the_moment_is_drawn_for_each_guest(wire: Wire, guest: Guest) -> None:
    shares = set()
    for seed in range(50):
        drawn = Renewal(
            guest.client,
            guest.bridge,
            namespace=SYSTEM,
            secret=RENEWED_SECRET,
            files=TlsFiles(guest.shipped, CLIENT),
            events=guest.events,
            now=now,
            rng=random.Random(seed),
        )
        shares.add(drawn._share)
    assert len(shares) == 50
    assert DUE[0] <= min(shares) < max(shares) <= DUE[1]


async def test_what_cert_manager_keeps_is_left_to_it(wire: Wire, guest: Guest) -> None:
    await offered(wire)
    metadata = ObjectMeta(name=GUEST_SECRET, namespace=SYSTEM, annotations={CERT_MANAGER: "tenant-shop"})
    await wire.guest.user.create(SECRETS, Secret(metadata=metadata))
    guest.ahead = 89 * DAY
    await guest.renewal.check()
    assert await guest.kept() == {}
    await wire.guest.user.merge_patch(
        SECRETS, SYSTEM, GUEST_SECRET, {"metadata": {"annotations": {CERT_MANAGER: None}}}
    )
    await guest.renewal.check()
    assert await guest.kept() != {}


async def test_a_host_that_does_not_renew_is_told_of_only_when_it_matters(wire: Wire, guest: Guest) -> None:
    await guest.renewal.check()
    assert not guest.said()
    guest.ahead = 64 * DAY
    with pytest.raises(BridgeError) as e:
        await guest.renewal.check()
    assert e.value.reason == Reason.RENEWAL_NOT_OFFERED
    (event,) = guest.said()
    assert (event.type, event.reason) == ("Warning", "CertificateNotRenewed")
    assert "ends at" in event.message
    assert "cloudprovider tenant rotate" in event.message


async def test_a_host_whose_ca_is_damaged_says_where_to_look(
    wire: Wire, guest: Guest, caplog: pytest.LogCaptureFixture
) -> None:
    await offered(wire)
    await wire.chain.world.client.merge_patch(SECRETS, SYSTEM, CA_SECRET, {"data": {"tls.key": None}})
    guest.ahead = 64 * DAY
    with caplog.at_level(logging.ERROR), pytest.raises(BridgeError, match="ask its operator"):
        await guest.renewal.check()
    (record,) = (r for r in caplog.records if r.levelno == logging.ERROR)
    assert "lacks tls.key" in str(record.__dict__["error"])


async def test_a_ca_is_replaced_under_a_running_guest(wire: Wire, guest: Guest) -> None:
    """From the first step to the second the guest has only to look now and then; each time that the host's Secret
    changes, its bridge has not heard of that yet."""
    first = authority.of(wire.authority.ca)
    await offered(wire, first)
    two = authority.replaced(first, now())
    await offered(wire, two)
    await guest.renewal.check()
    assert await guest.kept() == {}, "nothing that its bridge would not take"
    wire.show(two.serving, two.trusted)
    await guest.renewal.check()
    kept = await guest.kept()
    assert set(certificates(kept[TRUSTED])) == set(certificates(two.trusted))
    assert is_signed_by(KeyPair(kept[CERTIFICATE], b""), certificates(two.signing.certificate))
    await guest.mount()
    await guest.until_shown()
    await guest.renewal.check()
    assert await guest.kept() == kept, "nothing more to do"
    one = authority.settled(two)
    await offered(wire, one)
    await guest.renewal.check()
    assert await guest.kept() == kept, "the bridge shows a certificate of the old CA"
    wire.show(one.serving, one.trusted)
    await guest.renewal.check()
    last = await guest.kept()
    assert set(certificates(last[TRUSTED])) == set(certificates(one.trusted))
    await guest.mount()
    await guest.until_shown()


async def test_strangers_cas_are_not_taken(wire: Wire, guest: Guest) -> None:
    await offered(wire)
    await guest.bridge.connect()  # on a connection that stands
    wire.show(wire.authority.ca, authority.make(now()).trusted)
    with pytest.raises(BridgeError, match="none of the CAs"):
        await guest.renewal.check()
    assert await guest.kept() == {}


def _gone(guest: Guest) -> None:
    guest.shipped.key.unlink()


def _swapped(guest: Guest) -> None:
    guest.shipped.key.write_bytes(guest.wire.authority.client().key)


@pytest.mark.parametrize(("spoil", "says"), [(_gone, "No such file"), (_swapped, "does not belong")])
async def test_files_that_can_not_be_used(guest: Guest, spoil: Callable[[Guest], None], says: str) -> None:
    spoil(guest)
    with pytest.raises(ConfigurationError, match=says):
        await guest.renewal.check()
