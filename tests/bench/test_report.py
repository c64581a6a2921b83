from pathlib import Path

import msgspec

from tests.bench.report import Report, Row


def rows(path: Path) -> list[Row]:
    return [msgspec.json.decode(line, type=Row) for line in path.read_bytes().splitlines()]


def test_a_command_replaces_its_own_rows_and_keeps_those_of_others(tmp_path: Path) -> None:
    path = tmp_path / "build" / "bench.jsonl"
    Report(path, "one").add("a", 1, "s")
    Report(path, "other").add("b", 2, "s")
    Report(path, "one").add("c", 3, "s")
    assert [(row.command, row.name) for row in rows(path)] == [("other", "b"), ("one", "c")]


def test_what_misses_its_aim_is_marked(tmp_path: Path) -> None:
    report = Report(tmp_path / "bench.jsonl", "one")
    assert report.add("a", 0.9, "", (">=", 0.93)).holds is False
    assert report.add("b", 0.93, "", (">=", 0.93)).holds is True
    assert report.add("c", 0.9, "").holds is None
    assert [line.endswith("MISSED") for line in report.table().splitlines()[2:]] == [True, False, False]
