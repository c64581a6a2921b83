"""Where the k3d lane of CI gets its clusters: from programs that bring Docker up, or from the Docker that is there."""

import os
from pathlib import Path

import pytest

from tests import ci, lanes
from tests.lab.process import LabError

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


def test_it_is_built_beside_then_brought_up_and_taken_down(folder: Path) -> None:
    rig = ci.find_rig(folder)
    assert isinstance(rig, ci.Rig)
    with rig.prepared():
        pass
    assert told(folder) == ["up", "down", "down"]  # the second one is there for who is interrupted
    with rig.up() as environment:
        assert environment["RIG"] == "of two words"
        assert environment["PATH"] == os.environ["PATH"]
    assert told(folder)[3:] == ["up", "down"]


def test_it_is_told_what_the_image_needs(folder: Path) -> None:
    (folder / "up").write_text(UP.replace("echo up", "echo $K3D_LAB_PACKAGES"))
    with ci.Rig(folder).prepared(), ci.Rig(folder).up():
        pass
    assert "frr" in told(folder)
    assert set(told(folder)) == {"frr", "down"}
    installed = (lanes.ROOT / "manifests" / "image" / "Dockerfile").read_text()
    assert all(package in installed.split() or f"{package};" in installed.split() for package in ci.PACKAGES)


def test_what_is_up_already_stays_up(folder: Path) -> None:
    (folder / "running").touch()
    rig = ci.Rig(folder)
    with rig.prepared():
        assert not (folder / "told").exists()
    with rig.up() as environment:
        assert environment["RIG"] == "of two words"
    assert told(folder) == ["up"]


def test_what_does_not_come_up_is_said_and_taken_down(folder: Path) -> None:
    (folder / "up").write_text("#!/bin/sh\necho no room; exit 1\n")
    with pytest.raises(LabError, match="no room"), ci.Rig(folder).up():
        pass
    assert told(folder) == ["down"]


def test_without_anything_it_says_so_in_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert ci.find_rig(None) == "docker is not on PATH"
    assert ci.find_rig(tmp_path) == f"there is no {tmp_path / 'up'}, and docker is not on PATH"
