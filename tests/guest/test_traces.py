"""A change of a Service begins a trace, which goes over the bridge; nothing else does."""

from cloudprovider.core.errors import NotPermitted, Violation
from cloudprovider.tracing.fake import MemoryTracer
from tests.guest.world import World, in_virtual_time


def names(tracer: MemoryTracer) -> dict[str, str]:
    """Each span's name, and its parent's."""
    by_context = {span.context: span.name for span in tracer.spans}
    return {span.name: by_context.get(span.parent, "") for span in tracer.spans}


@in_virtual_time
async def test_a_service_s_life() -> None:
    world = World()
    world.tracer = tracer = MemoryTracer()
    async with world.leading() as leadership:
        await world.until_true(lambda: leadership.host.connected)
        await world.served()
        assert names(tracer) == {
            "Service changed": "",
            "EnsureLoadBalancer": "Service changed",
            "Service status": "Service changed",
        }
        ensure = next(span for span in tracer.spans if span.name == "EnsureLoadBalancer")
        assert world.backend.traces["ensure"] == ensure.context
        assert {span.attributes["k8s.service.name"] for span in tracer.spans} == {"web"}
        tracer.spans.clear()

        await world.delete()
        await world.until(world.gone)
        assert names(tracer) == {
            "Service changed": "",
            "DeleteLoadBalancer": "Service changed",
            "Service released": "Service changed",
        }


@in_virtual_time
async def test_what_was_there_when_the_program_started_is_no_news() -> None:
    world = World()
    async with world.leading():
        await world.served()
    world.tracer = tracer = MemoryTracer()
    async with world.leading():
        await world.until_ready("web")
    assert tracer.spans == []


@in_virtual_time
async def test_a_refusal_is_in_it() -> None:
    world = World()
    world.tracer = tracer = MemoryTracer()
    async with world.leading() as leadership:
        await world.until_true(lambda: leadership.host.connected)
        world.backend.failure = NotPermitted(Violation(field="spec", reason="PoolNotPermitted", message="not for you"))
        await world.create()
        await world.until_true(lambda: "Service status" in names(tracer))
    reasons = {span.name: span.attributes.get("cloudprovider.reason") for span in tracer.spans}
    assert (reasons["EnsureLoadBalancer"], reasons["Service status"]) == ("NotPermitted", "PoolNotPermitted")
