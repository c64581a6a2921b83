"""Settings become each program's configuration: all of it, and nothing that the program does not know."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest

from cloudprovider.agent.config import AgentConfig
from cloudprovider.cli.options import LOGGING
from cloudprovider.cli.programs import AGENT, GUEST, HOST, Program
from cloudprovider.guest.config import GuestConfig
from cloudprovider.host.config import HostConfig

RENAMED = {"namespace": "lease_namespace"}


@pytest.mark.parametrize(
    ("program", "config"),
    [(GUEST, GuestConfig), (HOST, HostConfig), (AGENT, AgentConfig)],
    ids=["guest", "host", "agent"],
)
def test_every_field_is_a_setting_and_every_setting_a_field(program: Program, config: type) -> None:
    fields = {RENAMED.get(field.name, field.name) for field in dataclasses.fields(config)}
    settings = {option.key for option in program.options} - {option.key for option in LOGGING}
    assert settings == fields


@pytest.mark.parametrize(
    ("program", "config"),
    [(GUEST, GuestConfig), (HOST, HostConfig), (AGENT, AgentConfig)],
    ids=["guest", "host", "agent"],
)
def test_defaults_are_the_programs_own(program: Program, config: type) -> None:
    options = {option.key: option for option in program.options}
    for field in dataclasses.fields(config):
        option = options[RENAMED.get(field.name, field.name)]
        if field.default is not dataclasses.MISSING:
            texts = [] if option.default is None else [option.default]
            assert (option.value(texts, "default") if texts or option.many else None) == field.default, field.name


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "cloudprovider.cli.main", *arguments]
    environment = {"PYTHONPATH": str(Path(__file__).parents[2]), "HOME": "/nonexistent"}
    return subprocess.run(command, capture_output=True, text=True, timeout=30, env=environment, check=False)


def files(folder: Path, *names: str) -> list[str]:
    for name in names:
        (folder / name).write_text("")
    return [str(folder / name) for name in names]


def test_no_program_starts_without_an_api_server(tmp_path: Path) -> None:
    """The real programs: one line, exit code 2, no traceback."""
    (tmp_path / "networks.yaml").write_text("networks: [{device: mgmt-br, address: 192.0.2.9/24}]")
    certificate, key, ca = files(tmp_path, "crt", "key", "ca")
    nowhere = ["--kubeconfig", str(tmp_path / "none.yaml")]
    for arguments in (
        ["agent", "--node-name", "n", "--networks", str(tmp_path / "networks.yaml")],
        ["agent", "leave", "--node-name", "n", "--networks", str(tmp_path / "networks.yaml")],
        ["guest", "--bridge", "b:1", "--bridge-ca", ca, "--client-cert", certificate, "--client-key", key],
        ["host", "--tls-cert", certificate, "--tls-key", key, "--tenant-ca", ca],
    ):
        done = run(*arguments, *nowhere)
        assert done.returncode == 2, done.stderr
        last = done.stderr.splitlines()[-1]
        assert last.startswith("cloudprovider "), done.stderr
        assert "none.yaml" in last
        assert "Traceback" not in done.stderr
        for line in done.stderr.splitlines()[:-1]:
            json.loads(line)


def test_a_wrong_networks_file_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "networks.yaml"
    path.write_text("networks: [{devise: mgmt-br}]")
    done = run("agent", "--node-name", "n", "--networks", str(path))
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "networks.yaml" in line
    assert "devise" in line
