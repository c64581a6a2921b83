"""KubeVirt's VirtualMachineInstance, ``kubevirt.io/v1``, as far as it is read: a virtual machine that runs.

The spec is the machine's definition, which its owner in the host cluster wrote. Of the status, what the guest agent
reports is the word of whoever has root in the machine; an interface's ``infoSource`` says where it is from
(https://github.com/kubevirt/api, core/v1/types.go).
"""

import msgspec

from cloudprovider.core.api.meta import ApiStruct, KubeObject


class Interface(ApiStruct, frozen=True, kw_only=True):
    """spec.domain.devices.interfaces[]; ``masquerade`` set: it is bound by masquerade, behind its host's address."""

    name: str
    mac_address: str = ""
    masquerade: dict[str, msgspec.Raw] | None = None


class Devices(ApiStruct, frozen=True, kw_only=True):
    """spec.domain.devices."""

    interfaces: list[Interface] = []


class Domain(ApiStruct, frozen=True, kw_only=True):
    """spec.domain."""

    devices: Devices = msgspec.field(default_factory=Devices)


class MultusNetwork(ApiStruct, frozen=True, kw_only=True):
    """spec.networks[].multus; ``network_name`` is "namespace/name", or "name" in the machine's namespace."""

    network_name: str = ""
    default: bool = False


class Network(ApiStruct, frozen=True, kw_only=True):
    """spec.networks[]: ``multus`` None is the pod network."""

    name: str
    multus: MultusNetwork | None = None


class InstanceSpec(ApiStruct, frozen=True, kw_only=True):
    """spec."""

    domain: Domain = msgspec.field(default_factory=Domain)
    networks: list[Network] = []


class InterfaceStatus(ApiStruct, frozen=True, kw_only=True):
    """status.interfaces[]: ``name`` is that of the spec, empty for what only the guest agent knows of.

    ``info_source``: a list of "domain", "guest-agent", "multus-status", in one text with commas.
    """

    name: str = ""
    mac: str = ""
    ip_address: str = ""
    ip_addresses: list[str] = []
    interface_name: str = ""
    info_source: str = ""


class InstanceCondition(ApiStruct, frozen=True, kw_only=True):
    """status.conditions[]: Ready, AgentConnected and others."""

    type: str
    status: str
    reason: str = ""


class InstanceStatus(ApiStruct, frozen=True, kw_only=True):
    """status."""

    phase: str = ""
    node_name: str = ""
    interfaces: list[InterfaceStatus] = []
    conditions: list[InstanceCondition] = []


class VirtualMachineInstance(KubeObject, frozen=True, kw_only=True):
    """A virtual machine that runs, named as its VirtualMachine."""

    spec: InstanceSpec = msgspec.field(default_factory=InstanceSpec)
    status: InstanceStatus = msgspec.field(default_factory=InstanceStatus)
