"""The bench of health checks does what it says; its figures are for ``make bench``."""

from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from tests.bench import burst, health
from tests.bench.report import Report
from tests.dataplane.lan import bridge
from tests.probe.measure import nodes

pytestmark = pytest.mark.kernel

QUICK = msgspec.structs.replace(health.CHECK, period_seconds=1, timeout_seconds=1)


@pytest.fixture
def backends() -> Iterator[None]:
    with bridge(), nodes():
        yield


@pytest.mark.usefixtures("backends")
async def test_backends_are_asked_and_what_they_cost_is_told(tmp_path: Path) -> None:
    report = Report(tmp_path / "bench.jsonl", "test")
    await health.cost(report, 200, 2, QUICK)
    share, failures = (row.value for row in report.rows)
    assert 0 < share < 100
    assert failures == 0


def test_a_server_dies_and_is_not_sent_to_any_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "CHECK", QUICK)
    report = Report(tmp_path / "bench.jsonl", "test")
    health.death(report, 1)
    values = {row.name: row.value for row in report.rows}
    assert values["connections to it, in the mean"] > 0
    assert 0 < values["the last connection to it, slowest"] < 10


async def test_many_are_concerned_at_once(tmp_path: Path) -> None:
    report = Report(tmp_path / "bench.jsonl", "test")
    with bridge():
        await burst.same_machines(report, 12)
        await burst.different_sets(report, 12)
    assert len(report.rows) == 16
    assert all(0 < row.value < 10_000 for row in report.rows)
