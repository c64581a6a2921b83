"""The bench of the data plane does what it says, on a network of its own; its figures are for ``make bench``."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.bench.dataplane import flows, traffic, ways
from tests.bench.dataplane.ours import Case, ours
from tests.bench.dataplane.prepare import build_load
from tests.bench.dataplane.topology import TRACKED, Topology, topology
from tests.bench.dataplane.ways import Way
from tests.bench.report import Report

SAMPLES = {"TCP, 1 stream": {"routing": [10.0, 20.0, 10.0], "nat": [9.0, 18.0, 2.0]}}


def test_a_ratio_is_taken_within_its_round_and_the_median_of_them_told() -> None:
    found = SAMPLES["TCP, 1 stream"]
    assert traffic.ratio(found["nat"], found["routing"]) == 0.9


def test_the_matrix_has_a_line_a_way_and_leaves_out_what_was_not_measured() -> None:
    both = [Way("routing", (), "routing"), Way("nat", (), "routing")]
    samples: dict[str, dict[str, list[float]]] = {figure.name: {} for kind in traffic.KINDS for figure in kind.figures}
    samples |= SAMPLES
    _, routing, nat = traffic.matrix(both, samples).splitlines()
    assert routing.split()[:3] == ["routing", "10.0", "Gbit/s"]
    assert nat.split()[:4] == ["nat", "/", "routing", "0.90"]
    assert nat.split()[-1] == "-"


@pytest.fixture
def network(tmp_path: Path) -> Iterator[Topology]:
    build_load()
    with topology(tmp_path, tmp_path) as made:
        yield made


@pytest.mark.kernel
async def test_every_kind_of_load_goes_every_way(network: Topology, tmp_path: Path) -> None:
    async with ours(network, Case("nat"), 1) as mine:
        found = [ways.routing(network), ways.routing(network, "tracked", TRACKED), ways.direct(network), mine.way]
        samples, failed = traffic.measure(network, found, 2, 0.02)
        assert set(failed.values()) == {0}
        for figure in (figure for kind in traffic.KINDS for figure in kind.figures):
            assert samples[figure.name].keys() == {way.name for way in found}
            assert all(value > 0 for values in samples[figure.name].values() for value in values)
        report = Report(tmp_path / "bench.jsonl", "test")
        traffic.add_rows(report, found, samples, failed)
        assert {row.aim for row in report.rows if row.name == "TCP, 1 stream: nat to routing"} == {">= 0.93"}


@pytest.mark.kernel
async def test_flows_that_move_and_connections_that_fail_are_told(network: Topology, tmp_path: Path) -> None:
    async with ours(network, Case("nat"), 1) as mine:
        report = Report(tmp_path / "bench.jsonl", "test")
        await flows.add_rows(report, network, mine, 0.5)
        found = {row.name.rpartition(": ")[2]: row.value for row in report.rows}
        assert 9 < found["flows moved when 1 of 10 nodes left"] < 14
        assert found["connections that failed"] == 0
        network.nodes[1].namespace.run(
            "nft",
            "add table ip t; add chain ip t c { type filter hook input priority 0; };"
            "add rule ip t c tcp flags syn reject with tcp reset",
        )
        told = network.load("connect", 0.1, 1, mine.way.targets)
        assert told["failed"] > 0
