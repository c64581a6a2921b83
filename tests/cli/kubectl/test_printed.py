"""What ``kubectl lb`` prints, as whole texts."""

import re
import shlex
from pathlib import Path

import pytest

from tests.cli.kubectl.situations import SITUATIONS, Situation

PRINTED = Path(__file__).parent / "printed"


async def said(situation: Situation) -> str:
    """What stands in a situation's file: the command, what it prints, its notes and its exit code."""
    text, code, notes = await situation.scene().run(
        *shlex.split(situation.arguments), width=situation.width, color=situation.color
    )
    lines = [f"$ kubectl lb {situation.arguments}\n", text, *(f"kubectl lb: {note}\n" for note in notes)]
    return "".join((*lines, f"exit code {code}\n"))


@pytest.mark.parametrize("name", SITUATIONS)
async def test_it_prints_what_is_written(name: str) -> None:
    situation = SITUATIONS[name]
    printed = await said(situation)
    assert printed == (PRINTED / f"{name}.txt").read_text()
    assert printed.endswith(f"exit code {situation.code}\n")


def test_no_file_is_left_over() -> None:
    assert {path.stem for path in PRINTED.iterdir()} == set(SITUATIONS)


@pytest.mark.parametrize("name", [n for n, s in SITUATIONS.items() if s.width])
def test_no_line_is_wider_than_the_terminal(name: str) -> None:
    width = SITUATIONS[name].width or 0
    plain = re.sub("\x1b\\[[0-9]*m", "", (PRINTED / f"{name}.txt").read_text())
    assert [line for line in plain.splitlines() if len(line) > width] == []
