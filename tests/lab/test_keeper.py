"""What is kept ends with who had it begun, however that ends."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.lab.keeper import Keeper
from tests.lab.process import LabError, wait_for

ROOT = Path(__file__).parents[2]
HOLDER = """
import sys, time
from pathlib import Path
from tests.lab.keeper import Keeper
folder = Path(sys.argv[1])
with Keeper(["sh", "-c", sys.argv[2]], ["touch", str(folder / "ended")], folder / "log") as keeper:
    keeper.wait_begun()
    (folder / "kept").touch()
    time.sleep(60)
"""


def test_begun_on_entry_ended_on_exit(tmp_path: Path) -> None:
    begun, ended = tmp_path / "begun", tmp_path / "ended"
    with Keeper(["touch", str(begun)], ["touch", str(ended)], tmp_path / "log") as keeper:
        keeper.wait_begun()
        assert begun.exists()
        assert not ended.exists()
    assert ended.exists()


def test_what_can_not_be_begun_is_ended_as_well_and_said(tmp_path: Path) -> None:
    ended = tmp_path / "ended"
    with (
        pytest.raises(LabError, match="has failed: no room"),
        Keeper(["sh", "-c", "echo no room; exit 3"], ["touch", str(ended)], tmp_path / "log") as keeper,
    ):
        keeper.wait_begun()
    assert ended.exists()


def test_what_takes_too_long_to_begin_is_ended(tmp_path: Path) -> None:
    ended = tmp_path / "ended"
    with (
        pytest.raises(LabError, match=r"has not ended within 0.5 s: building"),
        Keeper(["sh", "-c", "echo building; exec sleep 60"], ["touch", str(ended)], tmp_path / "log") as keeper,
    ):
        keeper.wait_begun(0.5)
    assert ended.exists()


def test_an_end_that_fails_is_said(tmp_path: Path) -> None:
    with (
        pytest.raises(LabError, match="has failed: still in use"),
        Keeper([], ["sh", "-c", "echo still in use; exit 1"], tmp_path / "log"),
    ):
        pass


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("when", ["kept", "begins"])
def test_ended_however_its_holder_ends(tmp_path: Path, number: signal.Signals, when: str) -> None:
    """To the group, as a terminal does it; also while it is only beginning."""
    started = tmp_path / "started"
    script = f"echo $$ >{started}.tmp; mv {started}.tmp {started}" + ("; sleep 60 & wait" if when == "begins" else "")
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path), script],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    wait_for("it to begin", (started if when == "begins" else tmp_path / "kept").exists)
    os.killpg(holder.pid, number)
    holder.wait()
    wait_for("its end", (tmp_path / "ended").exists)
    if when == "begins":
        assert not Path(f"/proc/{started.read_text().strip()}").exists(), "what was begun goes on"
