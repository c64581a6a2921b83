"""Where the k3d lane of CI gets its clusters: from programs that bring Docker up, or from the Docker that is there."""

import os
from pathlib import Path

import pytest

from tests import ci, lanes
from tests.lab.process import LabError

LIMIT = 30.0
UP = """#!/bin/sh
echo up >>"$(dirname "$0")/told"
touch "$(dirname "$0")/running"
"""
ENV = """#!/bin/sh
[ -e "$(dirname "$0")/running" ] && echo 'export RIG="of two words"'
"""
DOWN = """#!/bin/sh
echo down >>"$(dirname "$0")/told"
rm -f "$(dirname "$0")/running"
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Programs as .ci/run expects them, which write down when they are called."""
    monkeypatch.setattr(ci, "LOCK", tmp_path / "lock")
    monkeypatch.setattr(ci, "LOGS", tmp_path / "logs")
    made = tmp_path / "rig"
    made.mkdir()
    for name, text in (("up", UP), ("env", ENV), ("down", DOWN)):
        (made / name).write_text(text)
        (made / name).chmod(0o755)
    return made


def told(folder: Path) -> list[str]:
    return (folder / "told").read_text().split()


def test_it_is_brought_up_and_taken_down(folder: Path) -> None:
    rig = ci.find_rig(folder)
    assert isinstance(rig, ci.Rig)
    with rig.up(limit=LIMIT) as environment:
        assert environment["RIG"] == "of two words"
        assert environment["PATH"] == os.environ["PATH"]
    assert told(folder) == ["up", "down"]


def test_it_is_taken_down_when_the_lane_fails(folder: Path) -> None:
    with pytest.raises(LabError, match="not done"), ci.Rig(folder).up(limit=LIMIT):
        raise LabError("not done")
    assert told(folder) == ["up", "down"]


def test_it_is_told_what_the_image_needs(folder: Path) -> None:
    (folder / "up").write_text(UP.replace("echo up", "echo $K3D_LAB_PACKAGES"))
    with ci.Rig(folder).up(limit=LIMIT):
        pass
    assert told(folder) == ["frr", "down"]
    installed = (lanes.ROOT / "manifests" / "image" / "Dockerfile").read_text()
    assert all(package in installed.split() or f"{package};" in installed.split() for package in ci.PACKAGES)


def test_what_is_up_already_stays_up(folder: Path) -> None:
    (folder / "running").touch()
    with ci.Rig(folder).up(limit=LIMIT) as environment:
        assert environment["RIG"] == "of two words"
    assert told(folder) == ["up"]


def test_another_run_is_waited_for_but_not_for_ever(folder: Path) -> None:
    with (
        ci.Rig(folder).up(limit=LIMIT),
        pytest.raises(ci.RigError, match="another run's end"),
        ci.Rig(folder).up(limit=0.2),
    ):
        pass
    assert told(folder) == ["up", "down"]


@pytest.mark.parametrize(
    ("up", "why"),
    [("echo no room; exit 1", "no room"), ("echo building; sleep 60", "building"), ("exit 0", "env prints nothing")],
)
def test_where_it_does_not_come_up_the_lane_is_left_out(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], up: str, why: str
) -> None:
    (folder / "up").write_text(f"#!/bin/sh\n{up}\n")
    monkeypatch.setattr(ci, "UP_LIMIT_SECONDS", 0.5)
    assert run(monkeypatch, folder) == 0
    assert told(folder) == ["down"]
    (line,) = (line for line in capsys.readouterr().out.splitlines() if "left out" in line)
    assert line.startswith("the k3d lane was left out: ")
    assert line.endswith(why)


@pytest.mark.parametrize("code", [0, 1])
def test_a_lane_that_fails_is_a_failure(folder: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    monkeypatch.setattr(ci, "LANE", ("-c", f"import sys; sys.exit({code})"))
    assert run(monkeypatch, folder) == code
    assert told(folder) == ["up", "down"]


def test_a_lane_without_an_end_is_a_failure(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ci, "LANE", ("-c", "import time; time.sleep(60)"))
    monkeypatch.setattr(ci, "LANE_LIMIT_SECONDS", 0.5)
    assert run(monkeypatch, folder) == 1
    assert told(folder) == ["up", "down"]


def run(monkeypatch: pytest.MonkeyPatch, folder: Path) -> int:
    """What all of it comes to, where the other lanes are fine and there is nothing to build."""
    monkeypatch.setattr(lanes, "main", lambda: 0)
    monkeypatch.setattr(ci, "make_wheels", lambda: None)
    monkeypatch.setattr("sys.argv", ["ci", "--k3d", str(folder)])
    return ci.main()


def test_without_anything_it_says_so_in_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert ci.find_rig(None) == "docker is not on PATH"
    assert ci.find_rig(tmp_path) == f"there is no {tmp_path / 'up'}, and docker is not on PATH"
