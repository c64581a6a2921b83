"""A Service's way through all programs as one trace, as a real OTLP receiver gets it."""

import itertools
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as collector
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc as collector_grpc
from typing_extensions import override

from tests.lab.lab import GATEWAY, NETWORK, TENANT, TENANT_NAMESPACE, Lab, ProgramName
from tests.lab.process import wait_for
from tests.lab.workload import Port, Workspace, service

pytestmark = [pytest.mark.apiserver, pytest.mark.kernel, pytest.mark.timeout(120)]

PROGRAMS: tuple[ProgramName, ...] = ("host", "agent", "guest")
WEB = Port(80, 8080)
ANNOTATION = "cloudprovider.harvesterhci.io/traceparent"
CONNECTED = "cloudprovider_guest_bridge_connected"
_numbers = itertools.count(1)

GUEST, HOST, AGENT = "cloudprovider-guest", "cloudprovider-host", "cloudprovider-agent"
REACHED = [
    (GUEST, "Service changed", ""),
    (GUEST, "EnsureLoadBalancer", "Service changed"),
    (HOST, "bridge EnsureLoadBalancer", "EnsureLoadBalancer"),
]
COMMITTED = (AGENT, "kernel commit", "bridge EnsureLoadBalancer")
REPORTED = (AGENT, "agent reports", "bridge EnsureLoadBalancer")
CREATED = [
    *REACHED,
    (HOST, "controller allocates", "bridge EnsureLoadBalancer"),
    COMMITTED,
    (AGENT, "announce", "bridge EnsureLoadBalancer"),
    REPORTED,
    (GUEST, "Service status", "Service changed"),
]
UPDATED = [*REACHED, COMMITTED, REPORTED]
DELETED = [
    (GUEST, "Service changed", ""),
    (GUEST, "DeleteLoadBalancer", "Service changed"),
    (HOST, "bridge DeleteLoadBalancer", "DeleteLoadBalancer"),
    (AGENT, "withdraw", "bridge DeleteLoadBalancer"),
    (AGENT, "kernel commit", "bridge DeleteLoadBalancer"),
    (AGENT, "agent reports", "bridge DeleteLoadBalancer"),
    (HOST, "controller releases", "bridge DeleteLoadBalancer"),
    (GUEST, "Service released", "Service changed"),
]
"""Program, span, and its parent's name; in the order of their ends, from one program to the next."""
ENCLOSING = ("Service changed", "EnsureLoadBalancer", "DeleteLoadBalancer")


@dataclass(frozen=True)
class Received:
    """A span as it came in."""

    program: str
    name: str
    trace: bytes
    number: bytes
    parent: bytes
    begun: int
    ended: int
    attributes: dict[str, str]


class Receiver(collector_grpc.TraceServiceServicer):
    """An OTLP collector."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._spans: list[Received] = []

    @override
    def Export(
        self,
        request: collector.ExportTraceServiceRequest,
        context: grpc.ServicerContext,
    ) -> collector.ExportTraceServiceResponse:
        for resource in request.resource_spans:
            told = {one.key: one.value.string_value for one in resource.resource.attributes}
            for scope in resource.scope_spans:
                found = [
                    Received(
                        told["service.name"],
                        span.name,
                        span.trace_id,
                        span.span_id,
                        span.parent_span_id,
                        span.start_time_unix_nano,
                        span.end_time_unix_nano,
                        {one.key: one.value.string_value for one in span.attributes},
                    )
                    for span in scope.spans
                ]
                with self._lock:
                    self._spans += found
        return collector.ExportTraceServiceResponse()

    def traces(self, service: str) -> list[list[Received]]:
        """All traces of one Service, each in the order of its spans' beginnings, the oldest first."""
        with self._lock:
            spans = sorted(self._spans, key=lambda span: span.begun)
        mine = {s.trace: None for s in spans if s.attributes.get("k8s.service.name") == service}
        return [[s for s in spans if s.trace == trace] for trace in mine]


@pytest.fixture
def receiver(lab: Lab) -> Iterator[Receiver]:
    """A collector on the LAN, and all programs started anew to tell it; afterwards they tell nobody."""
    receiver = Receiver()
    place = f"{NETWORK[GATEWAY]}:4317"
    with ThreadPoolExecutor(max_workers=2) as workers:
        server = grpc.server(workers)
        collector_grpc.add_TraceServiceServicer_to_server(receiver, server)  # type: ignore[no-untyped-call] # generated
        assert server.add_insecure_port(place)
        server.start()
        settings = {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://{place}", "OTEL_BSP_SCHEDULE_DELAY": "200"}
        try:
            for name in PROGRAMS:
                lab.programs[name].stop()
                lab.programs[name].process.environment.update(settings)
            for name in PROGRAMS:
                lab.start(name)
            # A copy that stands by is ready, too; and what there is before it watches is no news.
            wait_for("the guest program to lead", lambda: lab.programs["guest"].metrics().get(CONNECTED) == 1)
            yield receiver
        finally:
            for name in PROGRAMS:
                lab.programs[name].stop()
                for setting in settings:
                    lab.programs[name].process.environment.pop(setting)
            for name in PROGRAMS:
                lab.start(name)
            server.stop(grace=1).wait()


@pytest.fixture
def work(lab: Lab) -> Iterator[Workspace]:
    work = Workspace(lab.guest_plane.api, f"traced-{next(_numbers)}")
    work.create()
    yield work
    work.remove()


def the_trace(receiver: Receiver, number: int, expected: list[tuple[str, str, str]]) -> list[Received]:
    """Wait for the Service's trace of this number to have all spans, in order; check parents; return it.

    On a slow machine the guest writes into the Service's status twice: first that it is pending.
    """
    steps = [(program, name) for program, name, _ in expected if name not in ENCLOSING]

    def whole() -> list[Received]:
        assert len(receiver.traces("web")) > number
        trace = receiver.traces("web")[number]
        names = {span.number: span.name for span in trace}
        found = {(span.program, span.name, names.get(span.parent, "")) for span in trace}
        assert found >= set(expected), sorted(set(expected) - found)
        first = {step: min(s.begun for s in trace if (s.program, s.name) == step) for step in steps}
        last = {step: max(s.ended for s in trace if (s.program, s.name) == step) for step in steps}
        for one, other in itertools.combinations(steps, 2):
            # One program does several of them side by side.
            assert one[0] == other[0] or first[one] <= last[other], (one, other, trace)
        return trace

    trace = wait_for("all spans of the trace, in order", whole)
    assert len([span for span in trace if not span.parent]) == 1
    assert trace[0].name == "Service changed"
    by_number = {span.number: span for span in trace}
    for span in trace:
        assert span.begun <= span.ended
        if span.parent:
            assert by_number[span.parent].begun <= span.begun, span
        assert span.attributes["k8s.service.name"] == "web"
    return trace


def test_each_change_of_a_service_is_one_trace(lab: Lab, receiver: Receiver, work: Workspace) -> None:
    balancers = f"/apis/loadbalancer.harvesterhci.io/v1beta1/namespaces/{TENANT_NAMESPACE}/loadbalancers"
    work.expose(service("web", [WEB]))
    address = work.wait_address("web")
    created = the_trace(receiver, 0, CREATED)
    said = {key: value for span in created for key, value in span.attributes.items()}
    assert said["cloudprovider.tenant"] == f"{TENANT_NAMESPACE}/{TENANT}"
    assert said["k8s.namespace.name"] == work.namespace
    assert said["cloudprovider.addresses"] == address
    (balancer,) = (b for b in lab.host_plane.api.items(balancers) if b["spec"]["service"]["name"] == "web")
    assert said["cloudprovider.load_balancer"] == f"{TENANT_NAMESPACE}/{balancer['metadata']['name']}"
    bridge = next(span for span in created if span.name == "bridge EnsureLoadBalancer")
    note = f"00-{bridge.trace.hex()}-{bridge.number.hex()}-"
    assert balancer["metadata"]["annotations"][ANNOTATION].startswith(note)

    work.set_ports("web", [WEB, Port(81, 9090)])
    updated = the_trace(receiver, 1, UPDATED)

    work.delete("web")
    work.wait_deleted("web")
    deleted = the_trace(receiver, 2, DELETED)
    assert len({trace[0].trace for trace in (created, updated, deleted)}) == 3
    assert len(receiver.traces("web")) == 3
    for trace in (created, updated, deleted):
        for span in trace:
            print(f"{(span.begun - trace[0].begun) / 1e6:8.1f} ms +{(span.ended - span.begun) / 1e6:7.1f}  {span.name}")
