import msgspec
import pytest

from cloudprovider.core.api.loadbalancer import TRACE_ANNOTATION, LoadBalancer, LoadBalancerSpec
from cloudprovider.core.lbobject import difference, traced
from cloudprovider.core.tracing import FOLLOWED_SECONDS, NO_TRACER, LoadBalancerTrails, well_formed
from cloudprovider.tracing.fake import MemoryTracer
from tests.core.test_lbobject import PLAIN, REQUEST, build, patched

CONTEXT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
OTHER = "00-0af7651916cd43dd8448eb211c80319d-b7ad6b7169203332-01"


@pytest.mark.parametrize(
    "text",
    [
        "",
        CONTEXT + "\n",
        CONTEXT + "-00",
        CONTEXT.upper(),
        CONTEXT.replace("00-", "ff-", 1),
        CONTEXT.replace("00-", "01-", 1),
        f"00-{'0' * 32}-b7ad6b7169203331-01",
        f"00-0af7651916cd43dd8448eb211c80319c-{'0' * 16}-01",
        "x" * 100_000,
        CONTEXT.replace("a", "é"),
    ],
)
def test_what_is_no_context_is_none(text: str) -> None:
    assert well_formed(text) == ""
    assert well_formed(CONTEXT) == CONTEXT


def test_a_trace_goes_with_a_change_and_is_none_by_itself() -> None:
    have = traced(build(), CONTEXT)
    assert have.metadata.annotations[TRACE_ANNOTATION] == CONTEXT
    assert difference(have, build()) == {}
    assert difference(have, traced(build(), OTHER)) == {}
    changed = patched(have, difference(have, traced(build(PLAIN), OTHER)))
    assert changed.metadata.annotations[TRACE_ANNOTATION] == OTHER
    assert changed.spec == build(PLAIN).spec
    untraced = patched(have, difference(have, build(PLAIN)))
    assert TRACE_ANNOTATION not in untraced.metadata.annotations
    assert traced(build(REQUEST), "") == build(REQUEST)


def written(generation: int, context: str = CONTEXT, *, deleted: str = "") -> LoadBalancer:
    lb = traced(build(), context)
    meta = msgspec.structs.replace(lb.metadata, generation=generation, deletion_timestamp=deleted)
    return msgspec.structs.replace(lb, metadata=meta)


class TestFollowing:
    def test_a_change_that_brings_a_context_is_followed_for_its_time(self) -> None:
        clock = [1]
        tracer = MemoryTracer(lambda: clock[0])
        trails = LoadBalancerTrails(tracer)
        lb = written(1)
        trails.changed(None, lb, listed=False)
        with trails.follow(lb.key, "one", attributes={"more": 1}) as span:
            assert span.context
        (seen,) = tracer.spans
        assert (seen.name, seen.parent) == ("one", CONTEXT)
        assert seen.attributes == {
            "cloudprovider.load_balancer": "/".join(lb.key),
            "k8s.namespace.name": "default",
            "k8s.service.name": "web",
            "more": 1,
        }
        clock[0] += FOLLOWED_SECONDS * 10**9 + 1
        with trails.follow(lb.key, "late") as span:
            assert not span.context
        assert not trails

    def test_what_was_there_before_and_what_is_no_change_of_it_is_not_followed(self) -> None:
        trails = LoadBalancerTrails(MemoryTracer())
        trails.changed(None, written(1), listed=True)
        trails.changed(written(1), written(1), listed=False)
        trails.changed(written(1), written(1, OTHER), listed=False)
        trails.changed(None, written(1, "rubbish"), listed=False)
        machines = msgspec.structs.replace(written(1), spec=LoadBalancerSpec(workload_type="vm"))
        trails.changed(None, machines, listed=False)
        assert not trails

    def test_a_change_without_a_context_ends_it_and_so_does_the_end(self) -> None:
        trails = LoadBalancerTrails(MemoryTracer())
        for last in (written(2, ""), None):
            trails.changed(None, written(1), listed=False)
            assert trails
            trails.changed(written(1), last, listed=False)
            assert not trails

    def test_a_deletion_is_a_change(self) -> None:
        trails = LoadBalancerTrails(MemoryTracer())
        trails.changed(written(1, OTHER), written(1, deleted="2026-01-01T00:00:00Z"), listed=False)
        trail = trails.of(written(1).key)
        assert trail is not None
        assert trail.context == CONTEXT

    def test_without_a_tracer_nothing_is_remembered(self) -> None:
        trails = LoadBalancerTrails(NO_TRACER)
        trails.changed(None, written(1), listed=False)
        assert not trails
