"""From virtual machines' instances to a load balancer's backends. Pure.

What vouches for a machine is the MAC of its interface on the address's network, which its definition names, or libvirt
where that leaves it open. The addresses are the word of the guest agent, so of whoever has root in the machine: an
address counts only together with that MAC, and belongs to one machine (``core.claimants``).

A machine that migrates keeps its name, MAC and address, and its instance stays in phase Running: nothing changes here.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Final

from cloudprovider.core.addressing import versions_of
from cloudprovider.core.api.guestcluster import MachineInterface
from cloudprovider.core.api.kubevirt import Interface, InterfaceStatus, Network, VirtualMachineInstance
from cloudprovider.core.api.loadbalancer import (
    MAX_BACKENDS,
    NETWORK_ANNOTATION,
    VIP_ON_LOOPBACK_ANNOTATION,
    Address,
    Backend,
    LoadBalancer,
)
from cloudprovider.core.api.meta import Condition
from cloudprovider.core.backends import BACKENDS_FOUND, Chosen, listed, selects, usable, why_none_is_usable
from cloudprovider.core.conditions import condition, cut
from cloudprovider.core.mac import MACAddress
from cloudprovider.core.plan import IPAddress
from cloudprovider.core.ranges import Version
from cloudprovider.core.wanted import Problem

MAX_MESSAGE: Final = 1024
"""Characters of a backend's message."""

Judge = Callable[[VirtualMachineInstance, IPAddress], Problem | None]
"""Why a machine's address is not sent to, whatever the machine says: somebody else has it. None: it may be."""


@dataclass(frozen=True, slots=True)
class Side:
    """Where a load balancer meets its machines: the network of its addresses, their IP versions, and they themselves,
    which a machine may carry too (mode dsr)."""

    network: str
    versions: tuple[Version, ...]
    own: frozenset[IPAddress] = frozenset()


@dataclass(frozen=True, slots=True)
class Standing:
    """A machine on one network. ``mac`` None: not known (yet); ``addresses``: all that it says it has there, in its
    order, as far as one could send to them."""

    mac: MACAddress | None
    addresses: tuple[IPAddress, ...]
    masquerade: bool = False

    def first(self, version: Version, but: frozenset[IPAddress] = frozenset()) -> IPAddress | None:
        """Return the first address of a version that is none of ``but``: where the machine is reached."""
        return next((a for a in self.addresses if a.version == version and a not in but), None)


def matches(selector: Mapping[str, Sequence[str]], labels: Mapping[str, str]) -> bool:
    """Whether every key's label has one of its values. An empty selector matches nothing, nor does an empty list."""
    return selects(selector) and all(labels.get(key) in values for key, values in selector.items())


def takes_part(vmi: VirtualMachineInstance) -> bool:
    """Whether a machine runs, and is to."""
    return vmi.status.phase == "Running" and not vmi.metadata.deletion_timestamp


def side_of(lb: LoadBalancer, given: Sequence[Address], pool_network: str | None) -> Side:
    """Return where a load balancer meets its machines: by the addresses ``given`` to it, the first one first, or by
    what it asks for while it has none. ``pool_network``: of the pool that it names."""
    own = [a for a in (_parsed(one.ip) for one in given) if a is not None]
    if own:
        return Side(given[0].network, tuple(dict.fromkeys(a.version for a in own)), frozenset(own))
    network = lb.metadata.annotations.get(NETWORK_ANNOTATION, "") if pool_network is None else pool_network
    required, optional = versions_of(lb)
    return Side(network, (*required, *optional) or (4, 6))


def standing(vmi: VirtualMachineInstance, network: str) -> Standing | None:
    """Return how a machine stands on a network; None: it has no interface there. Of several interfaces the first one
    with an address counts."""
    found = [_standing(vmi, interface) for on, interface in _interfaces(vmi) if on == network]
    plain = [s for s in found if not s.masquerade]
    return next((s for s in plain if s.addresses), None) or next(iter(plain or found), None)


def networks_of(vmi: VirtualMachineInstance) -> tuple[str, ...]:
    """Return the networks that a machine has an interface on."""
    return tuple(dict.fromkeys(network for network, _ in _interfaces(vmi)))


def interfaces_of(vmi: VirtualMachineInstance) -> tuple[MachineInterface, ...]:
    """Return the interfaces by which a machine can be told on its networks: those with a MAC that is its own."""
    found = ((network, _standing(vmi, interface)) for network, interface in _interfaces(vmi))
    return tuple(
        MachineInterface(network=network, mac_address=str(s.mac)) for network, s in found if s.mac and not s.masquerade
    )


def claims_of(vmi: VirtualMachineInstance) -> Iterator[tuple[str, IPAddress]]:
    """Yield (network, address) of all that a running machine would be reached at: one of each version on a network."""
    if not takes_part(vmi):
        return
    for network in networks_of(vmi):
        found = standing(vmi, network)
        if found is None or found.masquerade:
            continue
        firsts = (found.first(4), found.first(6))
        yield from ((network, address) for address in firsts if address is not None)


def choose(lb: LoadBalancer, machines: Iterable[VirtualMachineInstance], side: Side, judge: Judge) -> Chosen:
    """Return the backends, by name, and the condition that sums them up. ``machines``: those of the load balancer's
    namespace."""
    selector = lb.spec.backend_server_selector
    chosen = sorted((m for m in machines if takes_part(m) and matches(selector, m.metadata.labels)), key=_name)
    left = len(chosen) - MAX_BACKENDS
    found = [_backend(m, side, judge) for m in chosen[:MAX_BACKENDS]]
    return Chosen(tuple(found), _condition(lb, found, left))


def _backend(vmi: VirtualMachineInstance, side: Side, judge: Judge) -> Backend:
    name = vmi.metadata.name
    found = standing(vmi, side.network)
    if found is None:
        return _out(name, _not_on(vmi, side.network))
    if found.masquerade:
        return _out(name, _behind_masquerade(side.network))
    addresses = [a for a in (found.first(v, side.own) for v in side.versions) if a is not None]
    if not addresses:
        return _out(name, _no_address(vmi, side))
    if found.mac is None:
        return _out(name, _NO_MAC)
    problems = {address: judge(vmi, address) for address in addresses}
    good = [str(address) for address, problem in problems.items() if problem is None]
    if not good:
        return _out(name, next(p for p in problems.values() if p is not None))
    direct = vmi.metadata.annotations.get(VIP_ON_LOOPBACK_ANNOTATION) == "true"
    return Backend(name=name, addresses=good, mac_address=str(found.mac), direct=direct)


def _condition(lb: LoadBalancer, found: Sequence[Backend], left: int) -> Condition:
    beyond = (
        f" {left} more match, and are left out: a load balancer sends to {MAX_BACKENDS} at most. Narrow the selector."
        if left > 0
        else ""
    )
    problem = why_none_is_usable(lb, found)
    if problem is not None:
        message = f"{problem.message}{beyond}"
        return condition(BACKENDS_FOUND, "False", problem.reason, message)
    out = [b for b in found if b.reason]
    message = f"{len(usable(found))} of {len(found)} virtual machines that match are sent to.{beyond}"
    if out:
        message = f"{message} Left out: {listed(f'{b.name}: {b.message}' for b in out)}"
    return condition(BACKENDS_FOUND, "True", BACKENDS_FOUND, message)


# --- a machine's interfaces ----------------------------------------------------------------------------------------


def _interfaces(vmi: VirtualMachineInstance) -> Iterator[tuple[str, Interface]]:
    networks = {network.name: network for network in vmi.spec.networks}
    for interface in vmi.spec.domain.devices.interfaces:
        if (network := networks.get(interface.name)) is not None:
            yield _network_name(network, vmi.metadata.namespace), interface


def _network_name(network: Network, namespace: str) -> str:
    if network.multus is None:
        return ""
    name = network.multus.network_name
    return name if "/" in name else f"{namespace}/{name}"


def _standing(vmi: VirtualMachineInstance, interface: Interface) -> Standing:
    status = next((s for s in vmi.status.interfaces if s.name == interface.name), None)
    addresses = () if status is None else tuple(_addresses(status))
    return Standing(_mac(interface, status), addresses, interface.masquerade is not None)


def _mac(interface: Interface, status: InterfaceStatus | None) -> MACAddress | None:
    text = interface.mac_address
    if not text and status is not None and "domain" in (s.strip() for s in status.info_source.split(",")):
        text = status.mac
    try:
        mac = MACAddress.parse(text)
    except ValueError:
        return None
    return mac if mac.is_unicast else None


def _addresses(status: InterfaceStatus) -> Iterator[IPAddress]:
    for text in status.ip_addresses or [status.ip_address]:
        address = _parsed(text.partition("/")[0])
        if address is not None and _can_be_sent_to(address):
            yield address


def _can_be_sent_to(address: IPAddress) -> bool:
    return not (address.is_loopback or address.is_multicast or address.is_unspecified or address.is_link_local)


def _parsed(text: str) -> IPAddress | None:
    """An address; None for what is none, and for one that counts on one link only."""
    try:
        return None if "%" in text else ip_address(text)
    except ValueError:
        return None


def _name(vmi: VirtualMachineInstance) -> str:
    return vmi.metadata.name


# --- why not --------------------------------------------------------------------------------------------------------


def _out(name: str, problem: Problem) -> Backend:
    return Backend(name=name, reason=problem.reason, message=cut(problem.message, MAX_MESSAGE))


_NO_MAC: Final = Problem(
    "NoMACAddress",
    "The MAC address of its interface on the network is not known yet: KubeVirt reports it once the machine has"
    " started. If this stays, set macAddress in the interface's definition.",
)


def _not_on(vmi: VirtualMachineInstance, network: str) -> Problem:
    has = networks_of(vmi)
    now = f"it is on {listed((_said(n) for n in has), joint=', ')}" if has else "it has none at all"
    message = (
        f"It has no interface on {_said(network)}, the network of the load balancer's address ({now}): attach it there,"
        " or have the load balancer take an address of a network that the machine is on."
    )
    return Problem("NotOnNetwork", message)


def _behind_masquerade(network: str) -> Problem:
    message = (
        f"Its interface on {_said(network)} is bound by masquerade, so it has no address there that could be sent to:"
        " bind it by bridge, or use an interface on a VM network."
    )
    return Problem("BehindMasquerade", message)


def _no_address(vmi: VirtualMachineInstance, side: Side) -> Problem:
    families = " or ".join(f"IPv{v}" for v in side.versions)
    if not any(c.type == "AgentConnected" and c.status == "True" for c in vmi.status.conditions):
        message = (
            f"Its {families} address on {_said(side.network)} is not known, as its guest agent does not report: install"
            " and start qemu-guest-agent in the machine."
        )
        return Problem("AgentNotConnected", message)
    message = (
        f"Its guest agent reports no {families} address for its interface on {_said(side.network)}: configure the"
        " interface in the machine."
    )
    return Problem("NoAddress", message)


def _said(network: str) -> str:
    return f'the network "{network}"' if network else "the management network"
