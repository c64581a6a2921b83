"""What an agent is told: its name, its instance, and how its host stands on each network."""

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface
from pathlib import Path

import msgspec

from cloudprovider.core.errors import ConfigurationError
from cloudprovider.dataplane.api import NetworkConfig


@dataclass(frozen=True, kw_only=True)
class AgentConfig:
    """Settings of one agent.

    ``instance`` is part of every namespace's name on the host, so that two installations do not meet;
    ``namespace`` is where the agents' Lease lives; ``endpoint`` "ADDRESS:PORT" of the health endpoint.
    """

    node_name: str
    instance: str
    networks: tuple[NetworkConfig, ...]
    kubeconfig: str = ""
    context: str = ""
    namespace: str = "cloudprovider-system"
    endpoint: str = "127.0.0.1:8083"


class _Network(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    device: str
    name: str = ""
    address: str = ""
    gateway: str = ""


class _File(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    networks: list[_Network]


def read_networks(path: Path) -> tuple[NetworkConfig, ...]:
    """Read the networks file (YAML). Raises ConfigurationError that names the key and what is wrong with it::

    networks:
    - name: ""                 # the management network; others as "namespace/name"
      device: mgmt-br          # the host's bridge on it
      address: 10.0.0.2/24     # the agent's own address there
      gateway: 10.0.0.1
    """
    try:
        content = path.read_bytes()
    except OSError as err:
        raise ConfigurationError(f"networks file {path}: {err.strerror}. Give the right path with --networks.") from err
    try:
        file = msgspec.yaml.decode(content, type=_File)
    except msgspec.DecodeError as err:
        raise ConfigurationError(f"networks file {path}: {err}") from err
    networks = tuple(_network(path, i, n) for i, n in enumerate(file.networks))
    if not networks:
        raise ConfigurationError(f"networks file {path}: networks is empty; name at least one network.")
    for key in ("name", "device"):
        values = [getattr(n, key) for n in networks]
        for twice in sorted({v for v in values if values.count(v) > 1}):
            raise ConfigurationError(f'networks file {path}: two networks have the {key} "{twice}"; keep one.')
    return networks


def _network(path: Path, index: int, network: _Network) -> NetworkConfig:
    where = f"networks file {path}: networks[{index}]"
    if not network.device:
        raise ConfigurationError(f"{where}.device is empty; name the host's bridge on this network.")
    if network.name and network.name.count("/") != 1:
        raise ConfigurationError(f'{where}.name "{network.name}" is not of the form "namespace/name".')
    try:
        address = IPv4Interface(network.address) if network.address else None
    except ValueError as err:
        raise ConfigurationError(f"{where}.address: {err}; write it as 10.0.0.2/24.") from err
    try:
        gateway = IPv4Address(network.gateway) if network.gateway else None
    except ValueError as err:
        raise ConfigurationError(f"{where}.gateway: {err}; write an address.") from err
    if address is not None and gateway is not None and gateway not in address.network:
        raise ConfigurationError(f"{where}.gateway {gateway} is not in {address.network}, the network of its address.")
    return NetworkConfig(network.name, network.device, address, gateway)
