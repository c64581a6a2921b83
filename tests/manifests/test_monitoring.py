"""Dashboard and alerts speak of nothing but what programs export, and are documented."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from cloudprovider.core.metrics.catalogue import PROGRAMS
from cloudprovider.core.metrics.definition import Metric
from manifests.monitoring.dashboard import ROWS
from manifests.monitoring.generate import COMPONENTS, SIDES, written
from tests.manifests.test_alerts import alerts

ROOT = Path(__file__).parents[2]
KNOWN: dict[str, Metric] = {metric.name: metric for metrics in PROGRAMS.values() for metric in metrics}
SCRAPED = frozenset({"instance", "job", "pod", "namespace"})
"""Labels that Prometheus gives to whatever it scrapes."""

_WORDS = re.compile(r"\b(?:by|on|group_left|group_right) *\(([^)]*)\)")
_METRIC = re.compile(r"\b((?:cloudprovider|process)_\w+)(?:\{([^}]*)\})?")


def shown() -> Iterator[tuple[str, str]]:
    """Each query of the dashboard, with its legend."""
    dashboard = json.loads((COMPONENTS / "dashboard" / "cloudprovider.json").read_text())
    for panel in dashboard["panels"]:
        for target in panel.get("targets", ()):
            yield target["expr"], target["legendFormat"]


def asked(side: str) -> Iterator[tuple[str, str]]:
    """Each alert's expression, with its texts."""
    for rule in alerts(side):
        yield str(rule["expr"]), str(rule["annotations"])


QUERIES = [*shown(), *(found for side in SIDES for found in asked(side))]


def metric_of(name: str) -> Metric:
    if name in KNOWN:
        return KNOWN[name]
    base = re.sub(r"_(bucket|sum|count)$", "", name)
    assert base in KNOWN, f"no program exports {name}"
    assert KNOWN[base].kind == "histogram", name
    return KNOWN[base]


@pytest.mark.parametrize(("query", "text"), QUERIES, ids=[query[:60] for query, _ in QUERIES])
def test_all_metrics_and_labels_are_exported(query: str, text: str) -> None:
    labels = set(SCRAPED)
    names = _METRIC.findall(query)
    assert names
    for name, chosen in names:
        metric = metric_of(name)
        own = {*metric.labels, *SCRAPED, *(["le"] if metric.kind == "histogram" else [])}
        assert set(re.findall(r"(\w+) *(?:=~|!~|!=|=)", chosen)) <= own, name
        labels |= own
        if metric.kind == "counter":
            assert re.search(rf"(?:rate|increase)\({name}\b", query), f"{name} only grows: show its rate"
        elif metric.kind == "histogram":
            assert re.search(rf"rate\({name}\b", query)
        else:
            assert not re.search(rf"(?:rate|increase)\({name}\b", query), f"{name} is no counter"
    for listed in _WORDS.findall(query):
        assert {word.strip() for word in listed.split(",") if word.strip()} <= labels
    told = re.findall(r"\{\{ *(?:\$labels\.)?(\w+) *\}\}", text)
    assert set(told) <= labels


def test_every_metric_of_ours_is_shown_or_watched() -> None:
    """One that nobody looks at is not worth its series."""
    used = {metric_of(name).name for query, _ in QUERIES for name, _ in _METRIC.findall(query)}
    left_out = {  # what only a closer look wants
        *("process_virtual_memory_bytes", "process_start_time_seconds", "process_open_fds", "process_max_fds"),
        *("cloudprovider_queue_active", "cloudprovider_queue_delayed", "cloudprovider_events_dropped_total"),
        *("cloudprovider_agent_node_packets_total", "cloudprovider_agent_node_connections_total"),
        *("cloudprovider_guest_load_balancers", "cloudprovider_host_bridge_serving"),
        "cloudprovider_agent_dhcp_earliest_expiry_timestamp_seconds",
    }
    assert KNOWN.keys() - used == left_out - used
    assert left_out <= KNOWN.keys()


def test_the_generated_files_are_up_to_date() -> None:
    for path, text in written().items():
        assert path.read_text() == text, f"{path.name} is not what it is made of: run make generate"


@pytest.mark.parametrize("side", SIDES)
def test_the_operators_rules_are_those_of_the_file(side: str) -> None:
    rule = yaml.safe_load((COMPONENTS / side / "prometheusrule.yaml").read_text())
    assert rule["spec"] == yaml.safe_load((COMPONENTS / side / "rules.yaml").read_text())


def test_the_dashboards_panels_are_told_apart_and_do_not_overlap() -> None:
    dashboard = json.loads((COMPONENTS / "dashboard" / "cloudprovider.json").read_text())
    panels = dashboard["panels"]
    assert [p["title"] for p in panels if p["type"] == "row"] == list(ROWS)
    assert len({p["id"] for p in panels}) == len(panels)
    assert len({p["title"] for p in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert not cells & taken, panel["title"]
        assert place["x"] + place["w"] <= 24
        taken |= cells


@pytest.mark.parametrize("side", SIDES)
def test_each_alert_says_what_it_means_and_what_to_do(side: str) -> None:
    page = (ROOT / "docs" / "monitoring.md").read_text()
    headings = [line.removeprefix("### ") for line in page.splitlines() if line.startswith("### ")]
    for rule in alerts(side):
        annotations, labels = rule["annotations"], rule["labels"]
        assert isinstance(annotations, dict)
        assert isinstance(labels, dict)
        assert annotations.keys() == {"summary", "description", "runbook"}
        assert labels["severity"] in ("warning", "critical")
        assert annotations["runbook"] == f"docs/monitoring.md#{str(rule['alert']).lower()}"
        assert headings.count(str(rule["alert"])) == 1, "what its runbook leads to"
    known = {str(rule["alert"]) for one in SIDES for rule in alerts(one)}
    assert set(headings) <= known, "the page tells of an alert that there is no more"
