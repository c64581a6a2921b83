"""Every condition that is ours: on which object, who says it, what it means, and which reasons it may have."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal, get_args

from cloudprovider.core import guestreasons, reasons
from cloudprovider.core.news import Program
from cloudprovider.core.rulings import REQUEST, AskedReason, Meaning, by_word

Type = Literal[
    "Allocated",
    "BackendsFound",
    "ClientAddressNotPreserved",
    "Full",
    "InventoryHeldBack",
    "Leased",
    "LoadBalancerPortsError",
    "NearlyFull",
    "NodesRejected",
    "Overlap",
    "Owned",
    "Programmed",
    "Ready",
    "loadbalancer.harvesterhci.io/Ready",
]

SERVICE_READY: Final = "loadbalancer.harvesterhci.io/Ready"
"""The guest program's condition on a Service."""

MIXED_PROTOCOLS: Final = "LoadBalancerMixedProtocolNotSupported"


@dataclass(frozen=True, kw_only=True)
class ConditionType:
    """One condition of one kind of object. ``good``: the status of one that is as it should be; where that is False,
    it is there only while something is wrong. ``also``: the load balancer's conditions whose reasons it repeats."""

    kind: Literal["Service", "LoadBalancer", "IPPool", "GuestCluster"]
    type: Type
    by: tuple[Program, ...]
    text: str
    good: Literal["True", "False"] = "True"
    reasons: Mapping[str, Meaning]
    also: tuple[Type, ...] = ()


def _fine(*words: reasons.FineReason) -> Mapping[str, Meaning]:
    return {word: reasons.FINE[word] for word in words}


def _pool(*words: reasons.PoolStateReason) -> Mapping[str, Meaning]:
    return {word: reasons.POOL_STATE[word] for word in words}


CONDITIONS: Final = (
    ConditionType(
        kind="Service",
        type=SERVICE_READY,
        by=("guest",),
        text="the Service shows its address and is served there",
        reasons={
            **_fine("AddressAssigned"),
            **{word: m for word, m in guestreasons.SERVICE.items() if word != MIXED_PROTOCOLS},
            **by_word(guestreasons.BRIDGE),
            **{word: REQUEST[word] for word in get_args(AskedReason)},
        },
        also=("Allocated", "Programmed", "Ready"),
    ),
    ConditionType(
        kind="Service",
        type="LoadBalancerPortsError",
        by=("guest",),
        text="some of its ports are not served",
        good="False",
        reasons={MIXED_PROTOCOLS: guestreasons.SERVICE[MIXED_PROTOCOLS]},
    ),
    ConditionType(
        kind="LoadBalancer",
        type="Allocated",
        by=("host",),
        text="it has the addresses that it asks for",
        reasons={
            **_fine("Allocated", "Moving", "AddressKept"),
            **by_word(reasons.POOL),
            **by_word(reasons.ADDRESS),
        },
        also=("Leased",),
    ),
    ConditionType(
        kind="LoadBalancer",
        type="Owned",
        by=("host",),
        text="there is a host to have its addresses up",
        reasons=by_word(reasons.OWNED),
    ),
    ConditionType(
        kind="LoadBalancer",
        type="Leased",
        by=("agent",),
        text="a DHCP server has given its address (ipam: dhcp only)",
        reasons={**_fine("Leased"), **by_word(reasons.LEASE)},
    ),
    ConditionType(
        kind="LoadBalancer",
        type="Programmed",
        by=("agent",),
        text="a host has the address up, and its rules in the kernel",
        reasons={**_fine("Programmed"), **by_word(reasons.PROGRAMMED)},
    ),
    ConditionType(
        kind="LoadBalancer",
        type="BackendsFound",
        by=("host",),
        text="there are virtual machines to send to (workloadType: vm only); Unknown while they are not known",
        reasons={
            **_fine("BackendsFound"),
            **{word: reasons.BACKEND[word] for word in get_args(reasons.NoMachinesReason)},
            **by_word(reasons.MACHINE),
            **{word: reasons.PLACE[word] for word in get_args(reasons.TakenReason)},
        },
    ),
    ConditionType(
        kind="LoadBalancer",
        type="Ready",
        by=("host", "agent"),
        text="clients are served; the host program says so while there is no address, else the agent",
        reasons={
            **_fine("Ready"),
            **{word: m for word, m in reasons.BACKEND.items() if word not in get_args(reasons.NoMachinesReason)},
        },
        also=("Allocated", "Programmed", "BackendsFound"),
    ),
    ConditionType(
        kind="LoadBalancer",
        type="ClientAddressNotPreserved",
        by=("agent",),
        text="servers see the host's address instead of the client's",
        good="False",
        reasons=_fine("Masquerade"),
    ),
    ConditionType(
        kind="IPPool",
        type="Ready",
        by=("host",),
        text="it hands out addresses",
        reasons=_pool("Ready", "InvalidRanges"),
    ),
    ConditionType(
        kind="IPPool",
        type="Overlap",
        by=("host",),
        text="another pool of its network has some of its addresses",
        good="False",
        reasons=_pool("OverlapsOlderPool"),
    ),
    ConditionType(
        kind="IPPool",
        type="NearlyFull",
        by=("host",),
        text="few addresses are left",
        good="False",
        reasons=_pool("AboveThreshold"),
    ),
    ConditionType(
        kind="IPPool",
        type="Full",
        by=("host",),
        text="no address is left",
        good="False",
        reasons=_pool("NoAddressLeft"),
    ),
    ConditionType(
        kind="GuestCluster",
        type="InventoryHeldBack",
        by=("host",),
        text="load balancers are kept that the guest's list lacks",
        good="False",
        reasons={"SuddenlySmall": reasons.TENANT["SuddenlySmall"]},
    ),
    ConditionType(
        kind="GuestCluster",
        type="NodesRejected",
        by=("host",),
        text="nothing is sent to some of its nodes",
        good="False",
        reasons={"AddressNotAccepted": reasons.TENANT["AddressNotAccepted"]},
    ),
)
