"""One lease's machine on a desk: the test is its clock, its server and its network."""

import random
from dataclasses import dataclass, replace
from ipaddress import IPv4Address
from typing import TypeVar

from typing_extensions import override

from cloudprovider.dhcp.effects import Change, Changed, Effect, Ignored, Probe, Send
from cloudprovider.dhcp.identity import client_identity
from cloudprovider.dhcp.machine import Machine, State
from cloudprovider.dhcp.message import Message, MessageType, Operation, Option
from cloudprovider.dhcp.terms import Terms
from cloudprovider.dhcp.timing import Timing

T = TypeVar("T")

OWNER = "7f6c0b1e-6e0a-4f0e-9d5a-1f2b3c4d5e6f"
ME = client_identity(OWNER)
ADDRESS = IPv4Address("10.0.0.5")
ELSE = IPv4Address("10.0.0.6")
SERVER = IPv4Address("10.0.0.1")
OTHER = IPv4Address("10.0.0.2")
SERVER_MAC = bytes.fromhex("02aabbccdd01")
LEASE = 3600


class Steady(random.Random):
    """No jitter, no fuzz; transaction ids that count."""

    xid = 0

    @override
    def random(self) -> float:
        return 0.0

    @override
    def uniform(self, a: float, b: float) -> float:
        return (a + b) / 2

    @override
    def getrandbits(self, k: int, /) -> int:
        self.xid += 1
        return self.xid


def terms(address: IPv4Address = ADDRESS, *, acquired: float = 0.0, mac: bytes = SERVER_MAC) -> Terms:
    return Terms(
        address=address,
        prefix_length=24,
        gateway=None,
        server=SERVER,
        server_mac=mac,
        acquired=acquired,
        renew=acquired + LEASE * 0.5,
        rebind=acquired + LEASE * 0.875,
        expires=acquired + LEASE,
    )


@dataclass
class Desk:
    machine: Machine
    now: float = 0.0
    sent: Message | None = None

    def answer(
        self,
        kind: MessageType,
        *,
        address: IPv4Address = ADDRESS,
        server: IPv4Address | None = SERVER,
        lease: int = LEASE,
        words: str = "",
        **changes: object,
    ) -> list[Effect]:
        """What the machine makes of an answer to what it has last sent."""
        assert self.sent is not None
        options: dict[int, bytes] = {}
        if server is not None:
            options[Option.SERVER_IDENTIFIER] = server.packed
        if kind is not MessageType.NAK:
            options |= {Option.SUBNET_MASK: b"\xff\xff\xff\0", Option.LEASE_TIME: lease.to_bytes(4, "big")}
        if words:
            options[Option.MESSAGE] = words.encode()
        message = Message(
            operation=Operation.REPLY,
            kind=kind,
            xid=self.sent.xid,
            chaddr=ME.chaddr,
            yiaddr=address if kind is not MessageType.NAK else IPv4Address(0),
            options=options,
        )
        return self._noted(self.machine.receive(self.now, replace(message, **changes), SERVER_MAC))  # type: ignore[arg-type]

    def lease(self) -> Terms | None:
        """The lease that is held."""
        return self.machine.held

    def wake(self) -> list[Effect]:
        """Let time go on until the machine wants to be woken, and wake it."""
        self.now = max(self.now, self.machine.deadline)
        return self._noted(self.machine.wake(self.now))

    def until(self, state: State) -> list[Effect]:
        """Wake it until it is in a state; what it did last."""
        for _ in range(50):
            effects = self.wake()
            if self.machine.state is state:
                return effects
        raise AssertionError(f"the machine did not come to {state}, it is in {self.machine.state}")

    def probed(self, mac: str = "") -> list[Effect]:
        return self._noted(self.machine.probed(self.now, ADDRESS, mac))

    def _noted(self, effects: list[Effect]) -> list[Effect]:
        for each in of(effects, Send):
            self.sent = each.message
        return effects


def of(effects: list[Effect], kind: type[T]) -> list[T]:
    """The effects of one kind."""
    return [each for each in effects if isinstance(each, kind)]


def message(effects: list[Effect]) -> Message:
    """The one message that is sent."""
    (sent,) = of(effects, Send)
    return sent.message


def ignored(effects: list[Effect]) -> str:
    """Why a message was ignored: that and nothing else came of it."""
    (effect,) = effects
    assert isinstance(effect, Ignored)
    return effect.reason


def changes(effects: list[Effect]) -> list[Change]:
    return [each.change for each in of(effects, Changed)]


def desk(
    *, remembered: Terms | None = None, now: float = 0.0, rng: random.Random | None = None, hostname: str = ""
) -> Desk:
    """A machine that has done nothing yet."""
    machine = Machine(ME, hostname=hostname, remembered=remembered, now=now, rng=rng or Steady(), timing=Timing())
    return Desk(machine, now=now)


def selecting() -> Desk:
    made = desk()
    made.wake()
    return made


def requesting() -> Desk:
    made = selecting()
    made.answer(MessageType.OFFER)
    return made


def probing() -> Desk:
    made = requesting()
    assert of(made.answer(MessageType.ACK), Probe) == [Probe(ADDRESS)]
    return made


def bound() -> Desk:
    made = probing()
    made.probed()
    return made


def renewing() -> Desk:
    made = bound()
    made.until(State.RENEWING)
    return made


def rebinding() -> Desk:
    made = bound()
    made.until(State.REBINDING)
    return made


def rebooting() -> Desk:
    made = desk(remembered=terms(), now=100.0)
    made.wake()
    return made
