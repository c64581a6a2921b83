"""The networks file: every mistake is named with its key."""

from pathlib import Path

import pytest

from cloudprovider.agent.config import read_networks
from cloudprovider.core.errors import ConfigurationError

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


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("networks: []", "name at least one"),
        ("networks: [{name: ''}]", "device"),
        ("networks: [{device: ''}]", "networks[0].device is empty"),
        ("networks: [{device: br, colour: red}]", "colour"),
        ("networks: [{device: br, name: vlan}]", 'networks[0].name "vlan" is not of the form "namespace/name"'),
        ("networks: [{device: br, address: 10.0.0.300/24}]", "networks[0].address"),
        ("networks: [{device: br, address: 10.0.0.2/24, gateway: 10.0.1.1}]", "10.0.1.1 is not in 10.0.0.0/24"),
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
