"""What is known of the host through cuts, resumed and new streams."""

from collections.abc import AsyncIterator
from ipaddress import ip_address

from typing_extensions import override

from cloudprovider.bridge.api import BridgeEvent, Connected, Disconnected, Reason, StateChange, Welcome
from cloudprovider.bridge.fake import MemoryBackend
from cloudprovider.bridge.local import LocalBridge
from cloudprovider.core.errors import BridgeError
from cloudprovider.core.exchange import GivenAddress, LoadBalancerState, ServiceKey
from cloudprovider.guest.hostview import HostView
from tests.guest.world import HELLO, TENANT

A, B, C = (ServiceKey("shop", name, f"uid-{name}") for name in "abc")
WELCOME = Welcome(host_version="1", tenant=TENANT, max_ports=250)


def state(key: ServiceKey, ip: str = "192.0.2.1") -> LoadBalancerState:
    return LoadBalancerState(service=key, addresses=(GivenAddress(ip_address(ip)),))


class _Script(LocalBridge):
    """A bridge whose stream is written down."""

    def __init__(self, *events: BridgeEvent) -> None:
        super().__init__(MemoryBackend(), TENANT, HELLO)
        self._events = events

    @override
    async def watch(self) -> AsyncIterator[BridgeEvent]:
        for event in self._events:
            yield event


class _Heard:
    def __init__(self, *events: BridgeEvent) -> None:
        self.view = HostView(_Script(*events))
        self.states: list[tuple[str, bool]] = []
        self.marks: list[str] = []
        self.view.on_state(lambda key, known: self.states.append((key.name, known is not None)))
        self.view.on_connected(lambda: self.marks.append("connected"))
        self.view.on_synced(lambda: self.marks.append("synced"))


CUT = Disconnected(error=BridgeError("cut", reason=Reason.UNAVAILABLE), retry_in=1.0)
NEW = Connected(welcome=WELCOME, resumed=False)
RESUMED = Connected(welcome=WELCOME, resumed=True)


async def test_a_snapshot_drops_what_it_lacks() -> None:
    heard = _Heard(
        NEW,
        StateChange(updated=(state(A), state(B)), synced=True),
        CUT,
        NEW,
        StateChange(updated=(state(A),)),
        StateChange(updated=(state(C),), synced=True),
    )
    await heard.view.run()
    assert heard.states == [("a", True), ("b", True), ("c", True), ("b", False)]
    assert heard.marks == ["connected", "synced", "connected", "synced"]
    assert heard.view.session == 2
    assert heard.view.state(B) is None
    assert len(heard.view) == 2


async def test_a_service_has_an_address_once_the_host_says_one() -> None:
    heard = _Heard(NEW, StateChange(updated=(LoadBalancerState(service=A), state(B))))
    await heard.view.run()
    assert [heard.view.has_addresses((key.namespace, key.name)) for key in (A, B, C)] == [False, True, False]


async def test_a_resumed_stream_keeps_what_is_known() -> None:
    heard = _Heard(NEW, StateChange(updated=(state(A),), synced=True), CUT, RESUMED, StateChange(removed=(A,)))
    await heard.view.run()
    assert heard.states == [("a", True), ("a", False)]
    assert heard.marks == ["connected", "synced", "connected", "synced"]
    assert heard.view.session == 1


async def test_a_state_that_says_nothing_new_is_not_told() -> None:
    heard = _Heard(NEW, StateChange(updated=(state(A),), synced=True), StateChange(updated=(state(A),)))
    await heard.view.run()
    assert heard.states == [("a", True)]


async def test_the_answer_of_a_call_never_replaces_what_the_stream_told() -> None:
    heard = _Heard(NEW, StateChange(updated=(state(A, "192.0.2.7"),), synced=True))
    await heard.view.run()
    heard.view.learn(state(A))
    heard.view.learn(state(B))
    assert heard.view.state(A) == state(A, "192.0.2.7")
    assert heard.view.state(B) == state(B)


async def test_a_cut_says_why() -> None:
    heard = _Heard(NEW, StateChange(synced=True), CUT)
    await heard.view.run()
    assert not heard.view.connected
    assert not heard.view.synced
    assert str(heard.view.error) == "cut"


async def test_services_by_name() -> None:
    old, new = ServiceKey("shop", "web", "1"), ServiceKey("shop", "web", "2")
    heard = _Heard(NEW, StateChange(updated=(state(old), state(new)), synced=True), StateChange(removed=(old,)))
    await heard.view.run()
    assert heard.view.named(("shop", "web")) == (new,)
    assert heard.view.named(("shop", "other")) == ()
