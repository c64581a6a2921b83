"""From a Service to a packet, step by step: what an explanation is made of, and which reason belongs to which step."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Final, Literal

import msgspec

from cloudprovider.core.api.kubernetes import Lease

State = Literal["ok", "wrong", "waiting", "unknown"]
"""``waiting``: it comes by itself, or after the first step that is wrong. ``unknown``: it can't be seen from here."""

Name = Literal[
    "read",
    "translated",
    "sent",
    "accepted",
    "pool",
    "address",
    "holder",
    "programmed",
    "announced",
    "backends",
    "shown",
]

TITLES: Final[Mapping[Name, str]] = {
    "read": "read",
    "translated": "translated",
    "sent": "sent over the bridge",
    "accepted": "accepted",
    "pool": "pool chosen",
    "address": "address allocated",
    "holder": "a host holds it",
    "programmed": "programmed",
    "announced": "announced",
    "backends": "backends",
    "shown": "shown in the Service",
}


class Step(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """One step. ``reason``: the condition's word for programs, empty where it is fine; ``todo``: what to do."""

    name: Name
    state: State
    message: str = ""
    reason: str = ""
    todo: str = ""

    @property
    def title(self) -> str:
        """What the step is called."""
        return TITLES[self.name]


class Explanation(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """All steps of one load balancer, in order. ``wrong``: the first that is not fine."""

    kind: Literal["Service", "LoadBalancer"]
    namespace: str
    name: str
    steps: list[Step]
    wrong: Name | None = None


def explanation(kind: Literal["Service", "LoadBalancer"], key: tuple[str, str], steps: Sequence[Step]) -> Explanation:
    """Put steps together, and find the first that is not fine: a wrong one, else one that is waited for."""
    found = next((s for s in steps if s.state == "wrong"), None) or next(
        (s for s in steps if s.state == "waiting"), None
    )
    return Explanation(
        kind=kind, namespace=key[0], name=key[1], steps=list(steps), wrong=found.name if found is not None else None
    )


_POOL: Final = ("NoPoolMatches", "PoolNotFound", "PoolNotPermitted")
_ADDRESS: Final = (
    *("PoolExhausted", "QuotaExceeded", "AddressInUse", "AddressReserved", "AddressNotInPool", "AddressKept"),
    *("PrimaryNotFound", "PrimaryIsShared", "PrimaryUsesDHCP", "WaitingForPrimary", "PortConflict", "TooManySharers"),
    *("WaitingForGuests", "WaitingForLease", "UnsupportedIPAM", "Moving", "DHCPNoAnswer", "DHCPNoOffer"),
    *("DHCPRefused", "DHCPAddressConflict", "DHCPLeaseExpired", "DHCPInvalidOffer", "DHCPProbeFailed"),
    *("DHCPSendFailed", "DHCPNotPermitted", "InvalidHostname"),
)
_PROGRAMMED: Final = ("NetworkNotConfigured", "ModeNotPossible", "NoNodePort", "ListenerInUse", "KernelRefused")
_BACKENDS: Final = (
    *("NoNodes", "WaitingForNodes", "NoBackends", "NoHealthyBackends", "NoAddress", "NotOnNetwork"),
    *("AgentNotConnected", "BehindMasquerade", "NoMACAddress"),
    *("MachinesUnknown", "AddressNotOnNetwork", "AddressClaimedByNode"),
)
_SENT: Final = (
    *("HostNotReached", "BridgeFailed", "CertificateInvalid", "CertificateExpired", "CertificateRevoked"),
    *("TlsVersion", "NotConnected", "StaleLeader", "UnsupportedVersion", "RateLimited", "Unavailable"),
    *("DeadlineExceeded", "Internal"),
)
_WORDS: Final[tuple[tuple[Name, tuple[str, ...]], ...]] = (
    ("backends", _BACKENDS),
    ("pool", _POOL),
    ("address", _ADDRESS),
    ("programmed", _PROGRAMMED),
    ("holder", ("NoHost",)),
    ("announced", ("AddressConflict",)),
    ("sent", _SENT),
    ("shown", ("ForeignOwner",)),
)
_STEPS: Final[Mapping[str, Name]] = {word: name for name, words in _WORDS for word in words}

_TODO: Final[Mapping[str, str]] = {
    "NoPoolMatches": "have the host's operator open a pool to it, or ask for the network of one that is open",
    "PoolNotFound": "name another pool, or none",
    "PoolNotPermitted": "name another pool, or have the host's operator open this one",
    "PoolExhausted": "delete what is not needed, or have the host's operator add a range; it goes on by itself",
    "QuotaExceeded": "delete what is not needed any more, share an address, or have the host's operator allow more",
    "AddressInUse": "ask for another address, or for none",
    "AddressReserved": "ask for another address, or for none",
    "AddressNotInPool": "ask for an address of the pool, or for none",
    "AddressConflict": "find the device with that MAC address on the network, and take the address from it",
    "PortConflict": "use another port: another Service has this one on the shared address",
    "PrimaryNotFound": "create the Service whose address is to be shared, or name another one",
    "WaitingForGuests": "nothing: every guest first says which addresses it uses, which takes 30 s at most",
    "WaitingForLease": "look at the network's DHCP server if this stays",
    "DHCPNoAnswer": "look at the network's DHCP server; it goes on by itself",
    "DHCPNoOffer": "look at the network's DHCP server: has it room?",
    "NoHost": "start the agent of one of these hosts, uncordon one, or add the network to the agents' files",
    "NetworkNotConfigured": "add the network to the agents' files",
    "ModeNotPossible": "ask for another mode, or give what this one lacks",
    "NoNodePort": "let the Service have node ports, or use mode dsr",
    "NoNodes": "look at the nodes: ready, without exclude labels, inside the tenant's nodeCidrs?",
    "WaitingForNodes": "look at kube-proxy on these nodes",
    "NoHealthyBackends": "look at what these machines answer there, and at spec.healthCheck",
    "HostNotReached": "is the bridge's address right, and reachable from here? The guest program's log says more",
    "UnknownTenant": "have the host's operator apply the GuestCluster",
    "CertificateExpired": "have the certificate issued anew",
    "CertificateRevoked": "have the certificate issued anew",
    "ClusterMismatch": "if this cluster was rebuilt, have the host's operator set the annotation"
    " cloudprovider.harvesterhci.io/rebind on its GuestCluster",
    "IdentityMismatch": "have the host's operator move the object out of the way",
    "ForeignOwner": "let one controller alone handle the Service",
}


def todo_of(reason: str) -> str:
    """Return what to do about a reason; empty where its message says so itself."""
    return _TODO.get(reason, "")


def step_of(reason: str, otherwise: Name) -> Name:
    """Return the step that a condition's reason speaks of."""
    return _STEPS.get(reason, otherwise)


LEASE_SLACK: Final = timedelta(seconds=10)
"""Beyond a Lease's duration: its holder may be late, and the server says the time in whole seconds."""


def is_fresh(lease: Lease, now: datetime) -> bool:
    """Whether somebody holds a Lease, by the API server's clock."""
    spec = lease.spec
    if not spec.holder_identity or not spec.renew_time:
        return False
    try:
        renewed = datetime.fromisoformat(spec.renew_time)
    except ValueError:
        return False
    return now - renewed <= timedelta(seconds=spec.lease_duration_seconds) + LEASE_SLACK


def running(program: str, leases: Iterable[Lease] | None, now: datetime) -> tuple[State, str]:
    """Whether a program of ours runs, by its Lease ("cloudprovider-host", or with "cloudprovider-agent" any that begins
    so), and a sentence on it. ``leases`` None: they can't be read."""
    if leases is None:
        return "unknown", f"whether {program} runs can't be seen: its Lease can't be read"
    found = [x for x in leases if x.metadata.name == program or x.metadata.name.startswith(f"{program}-")]
    alive = sorted({x.spec.holder_identity.partition("_")[0] for x in found if is_fresh(x, now)})
    if alive:
        return "ok", f"{program} runs on {', '.join(alive)}"
    if any(x.spec.holder_identity for x in found):
        last = max((x.spec.renew_time or "" for x in found), default="")
        return "wrong", f"{program} has not renewed its Lease since {last.partition('.')[0]}Z"
    return "wrong", f"{program} does not run"
