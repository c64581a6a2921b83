"""The command line: help, exit codes, signals, and the commands that need no cluster."""

import asyncio
import dataclasses
import json
import logging
import os
import signal
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from cloudprovider.cli.main import main, run_program
from cloudprovider.cli.programs import AGENT, PROGRAMS, Action, Program, Settings
from cloudprovider.core.errors import ConfigurationError, Unavailable

GIVEN = {"node_name": ["n1"], "networks": [__file__], "log_format": ["json"]}


@pytest.fixture(autouse=True)
def _restore() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.captureWarnings(False)


def program(start: Callable[[Settings], Coroutine[object, object, None]]) -> Program:
    return dataclasses.replace(AGENT, actions=(Action("run", "run", start),))


def events(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--help"], ["guest", "host", "agent", "crds", "tenant", "first steps"]),
        (["crds", "--help"], ["--write", "kubectl apply"]),
        (["tenant", "--help"], ["issue", "server-certificate", "create", "revoke", "keep it safe"]),
        (["tenant", "issue", "--help"], ["--bridge HOST:PORT", "--node-cidr", "NAME.guest.yaml"]),
        *((([p.name, "--help"]), [o.flag for o in p.options] + [o.variable for o in p.options]) for p in PROGRAMS),
        (["agent", "--help"], ["leave", "networks.yaml"]),
    ],
)
def test_help_names_what_there_is(
    arguments: list[str], says: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    assert [word for word in says if word not in text] == []


@pytest.mark.parametrize("arguments", [[], ["serve"], ["agent", "stop"], ["guest", "--brige", "x:1"], ["tenant"]])
def test_wrong_usage_ends_with_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert "usage: cloudprovider" in capsys.readouterr().err


def test_bad_settings_are_one_line_and_2(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CLOUDPROVIDER_NODE_NAME", raising=False)
    assert main(["agent", "--networks", "/nowhere"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == 'cloudprovider agent: --networks: "/nowhere" is not a file'


def test_what_a_program_finds_wrong_at_its_start_is_the_same_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async def start(_: Settings) -> None:
        raise ConfigurationError("no API server at https://192.0.2.1: give --kubeconfig")

    with pytest.raises(ConfigurationError, match="give --kubeconfig"):
        run_program(program(start), "run", GIVEN, {})


def test_settings_reach_the_program(capsys: pytest.CaptureFixture[str]) -> None:
    seen: list[Settings] = []

    async def start(settings: Settings) -> None:
        seen.append(settings)

    assert run_program(program(start), "run", GIVEN, {"CLOUDPROVIDER_INSTANCE": "blue"}) == 0
    assert (seen[0]["node_name"], seen[0]["instance"], seen[0]["networks"]) == ("n1", "blue", Path(__file__))


def test_a_typo_in_the_environment_is_a_warning(capsys: pytest.CaptureFixture[str]) -> None:
    async def start(_: Settings) -> None:
        pass

    run_program(program(start), "run", GIVEN, {"CLOUDPROVIDER_INSTANSE": "blue"})
    (event,) = events(capsys.readouterr().err)
    assert "CLOUDPROVIDER_INSTANCE" in event["detail"]


@pytest.mark.parametrize(
    ("error", "message", "traced"),
    [
        (Unavailable("the API server has gone"), "The program can't go on", False),
        (RuntimeError("a mistake of ours"), "The program has failed", True),
    ],
)
def test_a_failure_is_logged_and_1(
    error: Exception, message: str, traced: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    async def start(_: Settings) -> None:
        raise error

    assert run_program(program(start), "run", GIVEN, {}) == 1
    (event,) = events(capsys.readouterr().err)
    assert event["message"] == message
    assert str(error) in event["error"]
    assert ("trace" in event) is traced


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_the_program_clean_up_and_ends_with_0(
    number: signal.Signals, capsys: pytest.CaptureFixture[str]
) -> None:
    cleaned: list[str] = []

    async def start(_: Settings) -> None:
        os.kill(os.getpid(), number)
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            cleaned.append("yes")

    before = signal.getsignal(signal.SIGINT)
    try:
        assert run_program(program(start), "run", GIVEN, {}) == 0
    finally:
        signal.signal(signal.SIGINT, before)
    assert cleaned == ["yes"]
    assert events(capsys.readouterr().err)[0]["signal"] == number.name


def test_crds_prints_what_stands_in_the_manifests(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["crds"]) == 0
    printed = {d["metadata"]["name"] for d in yaml.safe_load_all(capsys.readouterr().out)}
    assert main(["crds", "--write", str(tmp_path)]) == 0
    assert {yaml.safe_load(path.read_text())["metadata"]["name"] for path in tmp_path.iterdir()} == printed
    assert len(printed) == 6
