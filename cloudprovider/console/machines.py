"""The virtual machines that a selector matches, read with the user's rights."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from cloudprovider.core.api.kubevirt import VirtualMachineInstance
from cloudprovider.core.errors import Forbidden, Invalid, KubeError, NotFound
from cloudprovider.kube.api import KubeClient
from cloudprovider.kube.resources import VIRTUAL_MACHINE_INSTANCES

SHOWN: Final = 50


@dataclass(frozen=True)
class Machine:
    """One of them. ``address``: the first that its guest agent reports; empty: none."""

    name: str
    address: str
    phase: str


@dataclass(frozen=True)
class Matches:
    """``machines`` are the first of ``count``; ``problem``: why it is not known."""

    machines: Sequence[Machine] = ()
    count: int = 0
    problem: str = ""
    asked: bool = True


async def matching(client: KubeClient, namespace: str, label_selector: str) -> Matches:
    """Return the running machines of a namespace that have the labels."""
    if not namespace or not label_selector:
        return Matches(asked=False)
    try:
        found = await client.list(VIRTUAL_MACHINE_INSTANCES, namespace, label_selector=label_selector)
    except Forbidden as error:
        if error.status == 401:
            raise
        return Matches(problem="You may not list the virtual machines of this namespace.")
    except NotFound:
        return Matches(problem="This cluster knows no virtual machines (KubeVirt is not installed).")
    except Invalid:
        return Matches(problem="These labels can't be looked for: correct them first.")
    except KubeError as error:
        return Matches(problem=f"Not known now: {error}")
    alive = sorted((m for m in found.items if not m.metadata.deletion_timestamp), key=lambda m: m.metadata.name)
    return Matches([_machine(m) for m in alive[:SHOWN]], len(alive))


def _machine(instance: VirtualMachineInstance) -> Machine:
    addresses = (i.ip_address for i in instance.status.interfaces if i.ip_address)
    return Machine(instance.metadata.name, next(addresses, ""), instance.status.phase)
