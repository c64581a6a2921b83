"""Virtual machines' instances as KubeVirt writes them, for tests."""

import msgspec

from cloudprovider.core.api.kubevirt import (
    Devices,
    Domain,
    InstanceCondition,
    InstanceSpec,
    InstanceStatus,
    Interface,
    InterfaceStatus,
    MultusNetwork,
    Network,
    VirtualMachineInstance,
)
from cloudprovider.core.api.meta import ObjectMeta

VLAN = "default/vlan8"
MAC = "02:00:00:00:00:05"
CONNECTED = InstanceCondition(type="AgentConnected", status="True")


def nic(name: str = "nic-1", network: str | None = VLAN, *, mac: str = MAC, masquerade: bool = False) -> "Nic":
    """An interface and its network; ``network`` None: the pod network."""
    return Nic(
        Interface(name=name, mac_address=mac, masquerade={} if masquerade else None),
        Network(name=name, multus=None if network is None else MultusNetwork(network_name=network)),
    )


class Nic(msgspec.Struct, frozen=True):
    interface: Interface
    network: Network


def reported(
    *addresses: str, name: str = "nic-1", mac: str = MAC, source: str = "domain, guest-agent"
) -> InterfaceStatus:
    """What KubeVirt says of an interface, by the guest agent."""
    return InterfaceStatus(
        name=name,
        mac=mac,
        ip_address=addresses[0] if addresses else "",
        ip_addresses=list(addresses),
        info_source=source,
    )


def instance(
    name: str = "web",
    *addresses: str,
    namespace: str = "shop",
    labels: dict[str, str] | None = None,
    nics: tuple[Nic, ...] = (nic(),),
    status: tuple[InterfaceStatus, ...] | None = None,
    phase: str = "Running",
    connected: bool = True,
    **metadata: object,
) -> VirtualMachineInstance:
    """A machine that runs, with one interface on :data:`VLAN` whose guest agent reports ``addresses``."""
    fields = {"name": name, "namespace": namespace, "labels": {"app": "web"} if labels is None else labels, **metadata}
    return VirtualMachineInstance(
        api_version="kubevirt.io/v1",
        kind="VirtualMachineInstance",
        metadata=ObjectMeta(**fields),  # type: ignore[arg-type]
        spec=InstanceSpec(
            domain=Domain(devices=Devices(interfaces=[n.interface for n in nics])), networks=[n.network for n in nics]
        ),
        status=InstanceStatus(
            phase=phase,
            interfaces=list((reported(*addresses),) if status is None else status),
            conditions=[CONNECTED] if connected else [],
        ),
    )
