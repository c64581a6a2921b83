"""Where settings come from, which wins, and what is said of bad ones."""

from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest

from cloudprovider.cli import options
from cloudprovider.cli.programs import PROGRAMS, Program
from cloudprovider.cli.settings import Option, resolve, unknown_variables
from cloudprovider.core.errors import ConfigurationError

NAME = Option(name="node-name", metavar="NAME", help="", required=True)
PORT = Option(name="port", metavar="N", help="", parse=int, default="80")
CIDRS = Option(name="reserved-cidrs", metavar="CIDR", help="", parse=options.network, many=True)
LEVEL = Option(name="log-level", metavar="LEVEL", help="", default="info", choices=("debug", "info"))
OPTIONS = (NAME, PORT, CIDRS, LEVEL)


def settled(
    tmp_path: Path, flags: dict[str, list[str]] | None = None, env: dict[str, str] | None = None, file: str = ""
) -> dict[str, Any]:
    path = tmp_path / "settings.yaml"
    path.write_text(file)
    return resolve(OPTIONS, (flags or {}) | {"config": [str(path)]}, env or {})


@pytest.mark.parametrize(
    ("flags", "env", "file", "want"),
    [
        ({"port": ["1"]}, {"CLOUDPROVIDER_PORT": "2"}, "port: 3", 1),
        ({}, {"CLOUDPROVIDER_PORT": "2"}, "port: 3", 2),
        ({}, {}, "port: 3", 3),
        ({}, {}, "", 80),
        ({}, {"CLOUDPROVIDER_PORT": ""}, "port: 3", 3),
        ({"port": ["1", "5"]}, {}, "", 5),
    ],
)
def test_flag_before_environment_before_file_before_default(
    tmp_path: Path, flags: dict[str, list[str]], env: dict[str, str], file: str, want: int
) -> None:
    settings = settled(tmp_path, {"node_name": ["n"]} | flags, env, file)
    assert settings["port"] == want


@pytest.mark.parametrize(
    ("flags", "env", "file"),
    [
        ({"reserved_cidrs": ["10.0.0.0/8", "fd00::/8"]}, {}, ""),
        ({"reserved_cidrs": ["10.0.0.0/8, fd00::/8"]}, {}, ""),
        ({}, {"CLOUDPROVIDER_RESERVED_CIDRS": "10.0.0.0/8,fd00::/8"}, ""),
        ({}, {}, "reserved-cidrs: [10.0.0.0/8, 'fd00::/8']"),
        ({}, {}, "reserved-cidrs: 10.0.0.0/8,fd00::/8"),
    ],
)
def test_a_list_means_the_same_wherever_it_stands(
    tmp_path: Path, flags: dict[str, list[str]], env: dict[str, str], file: str
) -> None:
    settings = settled(tmp_path, {"node_name": ["n"]} | flags, env, file)
    assert settings["reserved_cidrs"] == (ip_network("10.0.0.0/8"), ip_network("fd00::/8"))


def test_nothing_given_is_none_or_empty(tmp_path: Path) -> None:
    optional = Option(name="context", metavar="NAME", help="")
    assert resolve((optional, CIDRS), {}, {}) == {"context": None, "reserved_cidrs": ()}


def test_the_file_can_be_named_in_the_environment(tmp_path: Path) -> None:
    path = tmp_path / "settings.yaml"
    path.write_text("node-name: from-file")
    assert resolve(OPTIONS, {}, {"CLOUDPROVIDER_CONFIG": str(path)})["node_name"] == "from-file"


@pytest.mark.parametrize(
    ("flags", "env", "file", "says"),
    [
        ({}, {}, "", r"missing: --node-name \(or CLOUDPROVIDER_NODE_NAME\)"),
        ({}, {}, "node-nam: n", 'settings.yaml: "node-nam" is not a setting; did you mean "node-name"'),
        ({}, {}, "nothing-near-it: n", '"nothing-near-it" is not a setting$'),
        ({}, {}, "node-name: [a, b]", "settings.yaml: node-name takes one value"),
        ({}, {}, "- node-name", "name: value"),
        ({}, {}, "{", "settings.yaml is not YAML"),
        ({"log_level": ["inf"]}, {}, "", '--log-level: "inf" is not one of debug, info; did you mean "info"'),
        ({}, {"CLOUDPROVIDER_LOG_LEVEL": "loud"}, "", 'CLOUDPROVIDER_LOG_LEVEL: "loud" is not one of'),
        (
            {},
            {},
            "reserved-cidrs: [10.0.0.1/8]",
            'settings.yaml: reserved-cidrs: "10.0.0.1/8" is not a CIDR: .*host bits',
        ),
    ],
)
def test_bad_settings_are_one_sentence(
    tmp_path: Path, flags: dict[str, list[str]], env: dict[str, str], file: str, says: str
) -> None:
    with pytest.raises(ConfigurationError, match=says) as error:
        settled(tmp_path, flags, env, file)
    assert "\n" not in str(error.value)


def test_a_missing_file_says_how_it_was_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="No such file or directory; give the right path with --config"):
        resolve(OPTIONS, {"config": [str(tmp_path / "none.yaml")]}, {})


def test_a_typo_in_the_environment_is_named() -> None:
    (sentence,) = unknown_variables(OPTIONS, ["CLOUDPROVIDER_NODE_NAMES", "CLOUDPROVIDER_PORT", "HOME"])
    assert sentence == (
        'CLOUDPROVIDER_NODE_NAMES in the environment is not a setting; did you mean "CLOUDPROVIDER_NODE_NAME"?'
    )


@pytest.mark.parametrize("text", ["bridge.example.org:8443", "192.0.2.1:1", "[::1]:65535"])
def test_host_port(text: str) -> None:
    assert options.host_port(text) == text


@pytest.mark.parametrize(
    "text", ["", "bridge", ":8443", "bridge:", "bridge:http", "bridge:0", "bridge:65536", "::1:80"]
)
def test_malformed_host_port(text: str) -> None:
    with pytest.raises(ValueError, match="is not HOST:PORT"):
        options.host_port(text)


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda p: str(p.name))
def test_defaults_parse_and_names_are_unique(program: Program) -> None:
    names = [option.name for option in program.options]
    assert len(names) == len(set(names))
    for option in program.options:
        assert option.help
        if option.default:
            option.value([option.default], option.flag)
