"""A program's registry: nothing but what is defined, readable by Prometheus, in pieces."""

import asyncio

import pytest
from prometheus_client.parser import text_string_to_metric_families

from cloudprovider.core.metrics.definition import OTHER, Group
from cloudprovider.kube.metrics import RequestCounter
from cloudprovider.kube.registry import CHUNK, Names, Readings, Registry
from tests.kube.exposed import exposed, parsed

GROUP = Group("test")
ALL = GROUP.counter("all_total", "All.")
BY = GROUP.counter("by_total", "By.", "what", bound="few")
NOW = GROUP.gauge("now", "Now.", "what", "where", bound="few")
TOOK = GROUP.histogram("took_seconds", "Took.", (0.1, 1.0), "what", bound="few")


async def test_what_is_counted_observed_and_read_is_exposed() -> None:
    registry = Registry("test", "1.2.3")
    registry.counter(ALL).inc(3)
    registry.histogram(TOOK).labels("x").observe(0.5)
    registry.read(lambda: [(NOW, {("a", 'quote " and \\'): 1})])

    async def later() -> Readings:
        await asyncio.sleep(0)
        return [(NOW, {("b", ""): 2.5}), (BY, {("w",): 7})]

    registry.read(later)
    found = await exposed(registry)
    assert found["cloudprovider_test_all_total", ()] == 3
    assert found["cloudprovider_test_by_total", (("what", "w"),)] == 7
    assert found["cloudprovider_test_now", (("what", "a"), ("where", 'quote " and \\'))] == 1
    assert found["cloudprovider_test_now", (("what", "b"), ("where", ""))] == 2.5
    assert found["cloudprovider_test_took_seconds_bucket", (("le", "0.1"), ("what", "x"))] == 0
    assert found["cloudprovider_test_took_seconds_bucket", (("le", "1.0"), ("what", "x"))] == 1
    (info,) = (dict(labels) for name, labels in found if name == "cloudprovider_build_info")
    assert (info["program"], info["version"]) == ("test", "1.2.3")
    assert found["process_resident_memory_bytes", ()] > 1_000_000
    assert not [name for name, _ in found if name.endswith("_created")]


async def test_two_registries_know_nothing_of_each_other() -> None:
    one, other = Registry("one", "1"), Registry("other", "1")
    one.counter(ALL).inc()
    other.counter(ALL)
    assert (await exposed(one))["cloudprovider_test_all_total", ()] == 1
    assert (await exposed(other))["cloudprovider_test_all_total", ()] == 0


async def test_a_family_of_many_lines_is_one_family_and_others_have_their_turn() -> None:
    registry = Registry("test", "1")
    count = 4 * CHUNK + 1
    registry.read(lambda: [(BY, {(f"w{n}",): n for n in range(count)})])
    turns = 0

    async def beside() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    task = asyncio.create_task(beside())
    text = (await registry.text()).decode()
    task.cancel()
    assert turns >= count // CHUNK
    assert text.count("# TYPE cloudprovider_test_by_total counter\n") == 1
    assert text.count("# HELP cloudprovider_test_by_total ") == 1
    found = {labels[0][1]: n for (name, labels), n in parsed(text).items() if name == BY.name}
    assert found == {f"w{n}": n for n in range(count)}
    families = [f.name for f in text_string_to_metric_families(text)]
    assert len(families) == len(set(families))


async def test_a_definition_can_t_be_misused() -> None:
    registry = Registry("test", "1")
    with pytest.raises(ValueError, match="is a gauge, no counter"):
        registry.counter(NOW)
    with pytest.raises(ValueError, match="labels want a bound"):
        GROUP.gauge("wrong", "Wrong.", "what")
    registry.read(lambda: [(NOW, {("one label",): 1})])
    with pytest.raises(ValueError, match="shorter"):
        await registry.text()


def test_names_are_bounded_and_stay() -> None:
    names = Names(2)
    assert [names.of(n) for n in ("a", "b", "c", "a", "d")] == ["a", "b", OTHER, "a", OTHER]


async def test_requests_are_counted_and_timed_but_watches_not() -> None:
    registry = Registry("test", "1")
    requests = RequestCounter(registry)
    requests.count("get", "pods", 200, 0.003)
    requests.count("watch", "pods", 200)
    found = await exposed(registry)
    key = (("code", "200"), ("resource", "pods"), ("verb", "get"))
    assert found["cloudprovider_kube_requests_total", key] == 1
    assert found["cloudprovider_kube_request_duration_seconds_count", (("verb", "get"),)] == 1
    assert ("cloudprovider_kube_request_duration_seconds_count", (("verb", "watch"),)) not in found
