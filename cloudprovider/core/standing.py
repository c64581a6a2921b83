"""Which hosts may own what stands on a network, by what their nodes say, and why none may. Pure."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from cloudprovider.core.api.kubernetes import EXCLUDE_LABELS, Node
from cloudprovider.core.api.loadbalancer import NETWORK_ANNOTATION, Address, LoadBalancer
from cloudprovider.core.api.meta import Condition
from cloudprovider.core.conditions import condition
from cloudprovider.core.hosts import Host

WEIGHT_ANNOTATION: Final = "cloudprovider.harvesterhci.io/weight"
"""On a Node: how much of the load balancers is to be its, against others' 1; "0": nothing."""
MAX_WEIGHT: Final = 100

OWNED: Final = "Owned"
"""The condition, written only while no host can have the addresses up."""

_TOLD: Final = 10
"""So many hosts are named in a message."""


@dataclass(frozen=True)
class Weight:
    """``excluded``: why it is 0, in a few words. ``wrong``: what is wrong with the annotation, which then is 1."""

    value: float = 1.0
    excluded: str = ""
    wrong: str = ""


@dataclass(frozen=True)
class Ownership:
    """The host that a load balancer's addresses are to be up at; "": none. ``problem``: why there is none that can."""

    host: str = ""
    problem: str = ""

    @property
    def conditions(self) -> tuple[Condition, ...]:
        """What is to be said of it."""
        if not self.problem:
            return ()
        return (condition(OWNED, "False", "NoHost", self.problem),)


def weight_of(node: Node | None) -> Weight:
    """What a node says; one that is not known (a host outside of the cluster) weighs 1."""
    if node is None:
        return Weight()
    text = node.metadata.annotations.get(WEIGHT_ANNOTATION)
    value, wrong = 1.0, ""
    if text is not None:
        if re.fullmatch(r"[0-9]{1,3}", text) and int(text) <= MAX_WEIGHT:
            value = float(text)
        else:
            wrong = f'{WEIGHT_ANNOTATION}: "{text[:40]}" is no whole number from 0 to {MAX_WEIGHT}: it counts as 1'
    if label := next((label for label in sorted(EXCLUDE_LABELS) if label in node.metadata.labels), ""):
        return Weight(0.0, f"excluded by its label {label}", wrong)
    if node.spec.unschedulable:
        return Weight(0.0, "cordoned", wrong)
    return Weight(value, "" if value else "of weight 0", wrong)


def networks_of(lb: LoadBalancer, addresses: Iterable[Address]) -> frozenset[str]:
    """The networks that its host must stand on: those of its addresses, and where it is to be leased another."""
    found = {address.network for address in addresses}
    if lb.spec.ipam == "dhcp":
        found.add(lb.metadata.annotations.get(NETWORK_ANNOTATION, ""))
    return frozenset(found)


def is_ready(host: Host, networks: Iterable[str]) -> bool:
    """Whether a host says that it serves on all of these networks."""
    return all((there := host.networks.get(network)) is not None and there.ready for network in networks)


def why_nobody(
    networks: Iterable[str], hosts: Mapping[str, Host], fresh: Iterable[str], weights: Mapping[str, Weight]
) -> str:
    """Say why no host can own what stands on ``networks``, host by host. ``hosts``: all that are known."""
    wanted = sorted(networks)
    where = " and ".join(_named(network) for network in wanted)
    if not hosts:
        return (
            f"There is no host to serve {where}: no agent has said that it runs. See the DaemonSet cloudprovider-agent."
        )
    living = frozenset(fresh)
    reasons = [
        f"{name} {_why_not(hosts[name], wanted, is_fresh=name in living, weight=weights.get(name, Weight()))}"
        for name in sorted(hosts)
    ]
    if (more := len(reasons) - _TOLD) > 0:
        reasons = [*reasons[:_TOLD], f"{more} more {'is' if more == 1 else 'are'} not able either"]
    return f"There is no host to serve {where}: {'; '.join(reasons)}."


def _why_not(host: Host, wanted: list[str], *, is_fresh: bool, weight: Weight) -> str:
    if not is_fresh:
        return "is silent"
    if lacking := [network for network in wanted if network not in host.networks]:
        there = ", ".join(_named(network) for network in sorted(host.networks)) or "no network"
        return f"does not stand on {' and '.join(_named(n) for n in lacking)} (it stands on {there})"
    if unready := [network for network in wanted if not host.networks[network].ready]:
        return f"is not ready on {' and '.join(_named(n) for n in unready)}"
    return f"is {weight.excluded}" if weight.excluded else "is not needed"


def _named(network: str) -> str:
    return f'the network "{network}"' if network else "the management network"
