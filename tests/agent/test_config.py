"""The networks file: every mistake is named with its key."""

from ipaddress import IPv4Interface, IPv6Address, IPv6Interface
from pathlib import Path

import pytest

from cloudprovider.agent.config import read_networks
from cloudprovider.core.errors import ConfigurationError
from cloudprovider.dataplane.api import NetworkConfig

GOOD = """
networks:
- device: mgmt-br
  address: 10.0.0.2/24
  gateway: 10.0.0.1
- name: default/vlan7
  device: vlan7-br
"""


def test_a_good_file(tmp_path: Path) -> None:
    file = tmp_path / "networks.yaml"
    file.write_text(GOOD)
    first, second = read_networks(file)
    assert (first.name, first.device, str(first.address), str(first.gateway)) == (
        "",
        "mgmt-br",
        "10.0.0.2/24",
        "10.0.0.1",
    )
    assert (second.name, second.address) == ("default/vlan7", None)
    assert (first.answer_ping, first.masquerade, first.vlan) == (True, True, 0)


def test_both_families_and_all_keys(tmp_path: Path) -> None:
    file = tmp_path / "networks.yaml"
    file.write_text("""
networks:
- {name: a/both, device: br, address: 10.0.0.2/24, address6: "fd00::2/64", gateway6: "fe80::1", answer-ping: false}
- {name: a/six, address6: "fd01::2/64", gateway6: "fd01::1", masquerade: false}
- {name: a/dsr, gateway6: "fe80::1"}
""")
    both, six, dsr = read_networks(file)
    assert both == NetworkConfig(
        "a/both",
        "br",
        address=IPv4Interface("10.0.0.2/24"),
        address6=IPv6Interface("fd00::2/64"),
        gateway6=IPv6Address("fe80::1"),
        answer_ping=False,
    )
    assert six == NetworkConfig(
        "a/six",
        "",
        address6=IPv6Interface("fd01::2/64"),
        gateway6=IPv6Address("fd01::1"),
        masquerade=False,
    )
    assert dsr == NetworkConfig("a/dsr", "", gateway6=IPv6Address("fe80::1"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("networks: []", "name at least one"),
        ("networks: [{name: ''}]", "networks[0].device is empty; name the host's bridge on the management network"),
        ("networks: [{device: ''}]", "networks[0].device is empty"),
        ("networks: [{device: br, colour: red}]", "colour"),
        ("networks: [{device: br, name: vlan}]", 'networks[0].name "vlan" is not of the form "namespace/name"'),
        ("networks: [{device: br, address: 10.0.0.300/24}]", "networks[0].address"),
        ("networks: [{device: br, address: 10.0.0.2/24, gateway: 10.0.1.1}]", "10.0.1.1 is not in 10.0.0.0/24"),
        ("networks: [{device: br, gateway: 10.0.0.1}]", "gateway 10.0.0.1 needs an address of its family beside it"),
        ("networks: [{device: br, address: fd00::2/64}]", "networks[0].address: Expected 4 octets"),
        ("networks: [{device: br, address: 10.0.0.2}]", "networks[0].address 10.0.0.2/32 has no network"),
        ("networks: [{device: br, address6: 10.0.0.2/24}]", "networks[0].address6"),
        (
            "networks: [{device: br, address6: 'fd00::2'}]",
            "address6 fd00::2/128 has no network; write it as fd00::2/64",
        ),
        ("networks: [{device: br, address6: 'fd00::2/64', gateway6: 'fd01::1'}]", "fd01::1 is not in fd00::/64"),
        ("networks: [{device: br, gateway6: 'fd01::1'}]", "gateway6 fd01::1 needs an address of its family"),
        ("networks: [{device: br, answer-ping: maybe}]", "answer-ping"),
        ("networks: [{device: br, answer_ping: true}]", "answer_ping"),
        ("networks: [{name: a/b}, {name: a/b}]", 'two networks have the name "a/b"'),
        ("networks: [{name: a/}]", 'networks[0].name "a/" is not of the form'),
        ("networks: [{device: br}, {device: br, name: a/b}]", 'the device "br"'),
        ("networks: [", "networks.yaml"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "networks.yaml"
    file.write_text(text)
    with pytest.raises(ConfigurationError) as error:
        read_networks(file)
    assert said in str(error.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"nowhere\.yaml: No such file"):
        read_networks(tmp_path / "nowhere.yaml")
