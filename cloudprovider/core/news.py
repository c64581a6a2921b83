"""Every event that a program of ours tells: about which kind of object, of which type, with which reason."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal, get_args

from cloudprovider.core.guestreasons import SERVICE
from cloudprovider.core.reasons import (
    BACKEND,
    MACHINE,
    PLACE,
    POOL_STATE,
    NewsReason,
    TakenReason,
    Word,
)
from cloudprovider.core.rulings import Meaning, by_word

Program = Literal["guest", "host", "agent"]


@dataclass(frozen=True)
class News:
    """One event. ``kind``: of the object that it is about; ``by``: the program; ``text``: what has happened."""

    kind: str
    type: Literal["Normal", "Warning"]
    reason: Word
    by: Program
    text: str


@dataclass(frozen=True)
class Echo:
    """Events that carry the reason of something that the object shows: ``of`` what, ``reasons`` which there may be
    (empty: those of the condition)."""

    kind: str
    type: Literal["Normal", "Warning"]
    by: Program
    of: str
    reasons: Mapping[str, Meaning]

    def because(self, reason: Word) -> News:
        """The event of one reason."""
        return News(self.kind, self.type, reason, self.by, self.of)


def _own(kind: str, type_: Literal["Normal", "Warning"], reason: NewsReason, by: Program, text: str) -> News:
    return News(kind, type_, reason, by, text)


SERVED: Final = News("Service", "Normal", "AddressAssigned", "guest", "the Service shows an address, or another one")
DELETED: Final = _own(
    "Service",
    "Normal",
    "LoadBalancerDeleted",
    "guest",
    "the Service wants no load balancer any more; its address is given back",
)
PORTS_LEFT_OUT: Final = Echo(
    "Service",
    "Warning",
    "guest",
    "the condition LoadBalancerPortsError",
    {"LoadBalancerMixedProtocolNotSupported": SERVICE["LoadBalancerMixedProtocolNotSupported"]},
)
NOT_SERVED: Final = Echo(
    "Service", "Warning", "guest", "the condition loadbalancer.harvesterhci.io/Ready, where it is False", {}
)
NODE_REJECTED: Final = Echo("Node", "Warning", "guest", "the host's word on an address of the node", by_word(PLACE))

ADDRESS_CONFLICT: Final = News(
    "LoadBalancer",
    "Warning",
    "AddressConflict",
    "host",
    "a device that is none of ours has the address: another one is taken, this one is set aside for ten minutes",
)
MACHINES_OUT: Final = Echo(
    "LoadBalancer",
    "Warning",
    "host",
    "the condition BackendsFound, where it is False, or a machine whose address is somebody else's",
    {
        "NoBackends": BACKEND["NoBackends"],
        "KubeVirtNotInstalled": BACKEND["KubeVirtNotInstalled"],
        **by_word(MACHINE),
        **{word: PLACE[word] for word in get_args(TakenReason)},
    },
)
RULES_MENDED: Final = _own(
    "LoadBalancer",
    "Warning",
    "RulesMended",
    "agent",
    "somebody had changed its rules in the kernel; they are right again",
)
CLAIMED_BY_OTHER: Final = _own(
    "LoadBalancer",
    "Warning",
    "AddressClaimedByOther",
    "agent",
    "a device, or a node, says that it has an address which is in use here; the address is defended",
)
LEASE_LOST: Final = _own(
    "LoadBalancer", "Warning", "LeaseLost", "agent", "its lease has ended: the address is off the network"
)

ADDRESS_RELEASED: Final = _own(
    "IPPool",
    "Normal",
    "AddressReleased",
    "host",
    "an address of a load balancer that is gone is given back",
)
NOT_RECORDED: Final = _own(
    "IPPool",
    "Warning",
    "AddressNotRecorded",
    "host",
    "a load balancer used an address that was not recorded for it: it is now, or it gets another one",
)
RELEASED: Final = _own(
    "IPPool", "Normal", "Released", "host", "an address is given back, as the annotation manuallyReleaseIP asks"
)
NOT_RELEASED: Final = _own(
    "IPPool", "Warning", "NotReleased", "host", "the annotation manuallyReleaseIP can't be heeded; the message says why"
)
POOL_WRONG: Final = Echo(
    "IPPool",
    "Warning",
    "host",
    "the condition Ready where it is False, Overlap, NearlyFull or Full",
    {reason: meaning for reason, meaning in POOL_STATE.items() if reason != "Ready"},
)
POOL_RIGHT: Final = News("IPPool", "Normal", "Ready", "host", "its ranges are right again: it hands out addresses")
NO_OVERLAP: Final = _own("IPPool", "Normal", "NoOverlap", "host", "no older pool hands out its addresses any more")
ADDRESSES_LEFT: Final = _own("IPPool", "Normal", "AddressesLeft", "host", "it was full, and has addresses again")

WEIGHT_WRONG: Final = _own(
    "Node", "Warning", "InvalidWeight", "host", "the annotation for the host's weight can't be read: it counts as 1"
)
CERTIFICATE_RENEWED: Final = _own(
    "Secret", "Normal", "CertificateRenewed", "guest", "the certificate for the host's bridge is a new one"
)
CERTIFICATE_NOT_RENEWED: Final = _own(
    "Secret",
    "Warning",
    "CertificateNotRenewed",
    "guest",
    "the certificate for the host's bridge is near its end, and no new one can be had; the message says why",
)
BRIDGE_CERTIFICATE_RENEWED: Final = _own(
    "Secret", "Normal", "CertificateRenewed", "host", "the bridge's certificate is a new one"
)

NEWS: Final[tuple[News | Echo, ...]] = (
    *(SERVED, DELETED, NOT_SERVED, PORTS_LEFT_OUT, NODE_REJECTED),
    *(ADDRESS_CONFLICT, MACHINES_OUT, RULES_MENDED, CLAIMED_BY_OTHER, LEASE_LOST),
    *(ADDRESS_RELEASED, NOT_RECORDED, RELEASED, NOT_RELEASED),
    *(POOL_WRONG, POOL_RIGHT, NO_OVERLAP, ADDRESSES_LEFT),
    WEIGHT_WRONG,
    *(CERTIFICATE_RENEWED, CERTIFICATE_NOT_RENEWED, BRIDGE_CERTIFICATE_RENEWED),
)
