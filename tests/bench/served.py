"""What kube-proxy adds: from a Service's create until each node's kube-proxy, and then the address, serves a page."""

import statistics
import time
from dataclasses import dataclass
from functools import partial
from typing import Final

from tests.lab.lab import Lab
from tests.lab.process import wait_for
from tests.lab.workload import Port, Workspace, service

TIMES: Final = 10
STEP: Final = 0.005
ANSWER_SECONDS: Final = 0.25


@dataclass(frozen=True)
class Served:
    """Medians, in ms from the create's start: all nodes serve the Service's node port; the address serves."""

    by_nodes: float
    by_address: float


def serving(lab: Lab) -> Served:
    """Create Services before a ready pod, one after the other, and watch them from the client on the LAN."""
    space = Workspace(lab.guest_plane.api, "served")
    space.create()
    try:
        space.deploy("web", 1)
        moments = [_one(lab, space, f"web-{i}") for i in range(TIMES)]
    finally:
        space.remove()
    return Served(*(1000 * statistics.median(moment) for moment in zip(*moments, strict=True)))


def _one(lab: Lab, space: Workspace, name: str) -> tuple[float, float]:
    port = Port(80, 8080)
    started = time.monotonic()
    made = lab.guest_plane.api.create(space.services, service(name, [port], app="web"))
    node_port = int(made["spec"]["ports"][0]["nodePort"])
    for node in lab.nodes.nodes.values():
        wait_for(f"node port {node_port} of {node.name}", partial(_page, lab, node.address, node_port), period=STEP)
    by_nodes = time.monotonic() - started
    address = wait_for(f"an address of {name}", lambda: space.address(name), period=STEP)
    wait_for(f"a page from {address}", partial(_page, lab, address, port.port), period=STEP)
    return by_nodes, time.monotonic() - started


def _page(lab: Lab, address: str, port: int) -> object:
    return lab.client.get(address, port, timeout=ANSWER_SECONDS)
