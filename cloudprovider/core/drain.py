"""Taking a backend out, and putting it back, by what there is for that already.

A guest's node leaves by Kubernetes' exclude label (KEP-1143), which the guest program heeds; a virtual machine by
losing a label that its load balancers select it by, which an annotation of its instance notes so long.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Final, Literal

import msgspec

from cloudprovider.core.api.kubernetes import EXCLUDE_LABELS, Node
from cloudprovider.core.api.kubevirt import VirtualMachineInstance
from cloudprovider.core.api.loadbalancer import LoadBalancer
from cloudprovider.core.api.meta import ObjectMeta
from cloudprovider.core.backends import selects

EXCLUDE: Final = "node.kubernetes.io/exclude-from-external-load-balancers"
TAKEN_OUT: Final = "loadbalancer.harvesterhci.io/taken-out"
"""On a machine's instance: the label, "key=value", that was taken away so that no load balancer selects it."""


class Drain(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """What is to be done. ``patch``: of the object's metadata; None: nothing is to be done. ``load_balancers``:
    "namespace/name" of those that it takes part in."""

    kind: Literal["Node", "VirtualMachineInstance"]
    namespace: str
    name: str
    action: Literal["out", "in"]
    patch: dict[str, dict[str, str | None]] | None
    message: str
    load_balancers: list[str] = []


class Impossible(Exception):
    """It can't be done so; the message says what to do instead."""


def drain_node(node: Node, *, back: bool) -> Drain:
    """Say how a guest's node is taken out, or put back."""
    name, labels = node.metadata.name, node.metadata.labels
    present = sorted(EXCLUDE_LABELS & labels.keys())
    if not back:
        message = "has the exclude label already" if present else "takes no new connections; those that it has go on"
        patch: dict[str, dict[str, str | None]] | None = None if present else {"labels": {EXCLUDE: ""}}
        return Drain(kind="Node", namespace="", name=name, action="out", patch=patch, message=message)
    message = "takes traffic again" if present else "has no exclude label: nothing is to be done"
    patch = {"labels": dict.fromkeys(present)} if present else None
    return Drain(kind="Node", namespace="", name=name, action="in", patch=patch, message=message)


def drain_machine(machine: VirtualMachineInstance, balancers: Iterable[LoadBalancer], *, back: bool) -> Drain:
    """Say how a virtual machine is taken out of all load balancers of its namespace, or put back.

    Raises Impossible where no one label does it.
    """
    meta = machine.metadata
    noted = meta.annotations.get(TAKEN_OUT, "")
    mine = [x for x in balancers if x.metadata.namespace == meta.namespace and x.spec.workload_type != "cluster"]
    labels = dict(meta.labels)
    key, _, value = noted.partition("=")
    if noted:
        labels[key] = value
    chosen = sorted((x for x in mine if _matches(x, labels)), key=lambda x: x.key)
    names = ["/".join(x.key) for x in chosen]
    if back:
        if not noted:
            return _machine(meta, "in", None, "was not taken out: nothing is to be done", names)
        patch: dict[str, dict[str, str | None]] = {"labels": {key: value}, "annotations": {TAKEN_OUT: None}}
        return _machine(meta, "in", patch, f"gets its label {noted} back, and with it its traffic", names)
    if noted:
        return _machine(meta, "out", None, f"has been taken out already (label {noted})", names)
    if not chosen:
        raise Impossible(f"no load balancer of the namespace {meta.namespace} selects the machine {meta.name}")
    label = _common(chosen)
    if label is None:
        raise Impossible(
            f"the load balancers {', '.join(names)} select {meta.name} by different labels: take them away one by one"
        )
    text = f"{label}={labels[label]}"
    patch = {"labels": {label: None}, "annotations": {TAKEN_OUT: text}}
    message = f"loses its label {text}; connections that it has go on; at its next start it has it again"
    return _machine(meta, "out", patch, message, names)


def _common(balancers: Sequence[LoadBalancer]) -> str | None:
    keys = set.intersection(*(set(x.spec.backend_server_selector) for x in balancers))
    return min(keys, default=None)


def _matches(lb: LoadBalancer, labels: Mapping[str, str]) -> bool:
    selector = lb.spec.backend_server_selector
    return selects(selector) and all(labels.get(key) in values for key, values in selector.items())


def _machine(
    meta: ObjectMeta,
    action: Literal["out", "in"],
    patch: dict[str, dict[str, str | None]] | None,
    message: str,
    names: list[str],
) -> Drain:
    return Drain(
        kind="VirtualMachineInstance",
        namespace=meta.namespace,
        name=meta.name,
        action=action,
        patch=patch,
        message=message,
        load_balancers=names,
    )
