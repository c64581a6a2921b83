"""What an agent is told: its name, its instance, and how its host stands on each network."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Interface
from pathlib import Path
from typing import Annotated, TypeVar

import msgspec
from msgspec import Meta

from cloudprovider.core.errors import ConfigurationError
from cloudprovider.dataplane.api import NetworkConfig

T = TypeVar("T")
Own = TypeVar("Own", IPv4Interface, IPv6Interface)


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


class NetworkEntry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="kebab"):
    """One network of the file, as it is written."""

    device: Annotated[
        str, Meta(description="The host's bridge on it; of others than the management network it may be left out.")
    ] = ""
    name: Annotated[
        str, Meta(description='"namespace/name" of its NetworkAttachmentDefinition; empty: management.')
    ] = ""
    address: Annotated[str, Meta(description="The agent's own address there, with its prefix length.")] = ""
    gateway: Annotated[str, Meta(description="The network's gateway.")] = ""
    address6: Annotated[str, Meta(description="The agent's own address there, IPv6.")] = ""
    gateway6: Annotated[str, Meta(description="The network's gateway, IPv6; it may be link-local.")] = ""
    answer_ping: Annotated[bool, Meta(description="Load balancers' addresses answer ping.")] = True
    masquerade: Annotated[
        bool, Meta(description="Mode nat: nodes see the agent's address, so that answers come back here.")
    ] = True


class _File(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    networks: list[NetworkEntry]


def read_networks(path: Path) -> tuple[NetworkConfig, ...]:
    """Read the networks file (YAML). Raises ConfigurationError that names the key and what is wrong with it::

    networks:
    - name: ""                 # the management network; others as "namespace/name"
      device: mgmt-br          # the host's bridge on it; others' stands in their NetworkAttachmentDefinition
      address: 10.0.0.2/24     # the agent's own address there; without one, mode dsr only
      gateway: 10.0.0.1
      address6: fd00::2/64     # the same for IPv6
      gateway6: fe80::1
      answer-ping: true        # whether load balancers' addresses answer ping
      masquerade: true         # mode nat: nodes see the agent's address, so that their answers come back here
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
        values = [value for n in networks if (value := getattr(n, key)) or key == "name"]
        for twice in sorted({v for v in values if values.count(v) > 1}):
            raise ConfigurationError(f'networks file {path}: two networks have the {key} "{twice}"; keep one.')
    return networks


def _network(path: Path, index: int, network: NetworkEntry) -> NetworkConfig:
    where = f"networks file {path}: networks[{index}]"
    if network.name and not re.fullmatch(r"[^/]+/[^/]+", network.name):
        raise ConfigurationError(f'{where}.name "{network.name}" is not of the form "namespace/name".')
    if not network.device and not network.name:
        raise ConfigurationError(f"{where}.device is empty; name the host's bridge on the management network.")
    address = _own(where, "address", network.address, IPv4Interface, "10.0.0.2/24")
    address6 = _own(where, "address6", network.address6, IPv6Interface, "fd00::2/64")
    gateway = _parsed(f"{where}.gateway", network.gateway, IPv4Address, "10.0.0.1")
    gateway6 = _parsed(f"{where}.gateway6", network.gateway6, IPv6Address, "fe80::1")
    if gateway is not None:
        _check_reachable(where, "gateway", gateway, address)
    if gateway6 is not None and not gateway6.is_link_local:
        _check_reachable(where, "gateway6", gateway6, address6)
    return NetworkConfig(
        name=network.name,
        device=network.device,
        address=address,
        gateway=gateway,
        address6=address6,
        gateway6=gateway6,
        answer_ping=network.answer_ping,
        masquerade=network.masquerade,
    )


def _parsed(where: str, text: str, kind: Callable[[str], T], form: str) -> T | None:
    try:
        return kind(text) if text else None
    except ValueError as err:
        raise ConfigurationError(f"{where}: {err}; write it as {form}.") from err


def _own(where: str, key: str, text: str, kind: Callable[[str], Own], form: str) -> Own | None:
    own = _parsed(f"{where}.{key}", text, kind, form)
    if own is not None and own.network.prefixlen == own.max_prefixlen:
        raise ConfigurationError(f"{where}.{key} {own} has no network; write it as {form}.")
    return own


def _check_reachable(
    where: str, key: str, gateway: IPv4Address | IPv6Address, own: IPv4Interface | IPv6Interface | None
) -> None:
    if own is None:
        raise ConfigurationError(f"{where}.{key} {gateway} needs an address of its family beside it.")
    if gateway not in own.network:
        raise ConfigurationError(f"{where}.{key} {gateway} is not in {own.network}, the network of its address.")
