"""From a guest's request to the host's LoadBalancer object, and what of an existing one differs from it."""

from collections.abc import Mapping
from typing import cast

import msgspec

from cloudprovider.core import exchange
from cloudprovider.core.api.guestcluster import GuestClusterSpec
from cloudprovider.core.api.loadbalancer import (
    CLUSTER_ANNOTATION,
    CLUSTER_LABEL,
    DRAIN_SECONDS,
    FINALIZER,
    NAMESPACE_ANNOTATION,
    NETWORK_ANNOTATION,
    PROJECT_ANNOTATION,
    SERVICE_NAME_LABEL,
    SERVICE_NAMESPACE_LABEL,
    TRACE_ANNOTATION,
    HealthCheck,
    Listener,
    LoadBalancer,
    LoadBalancerSpec,
    ServiceReference,
)
from cloudprovider.core.api.meta import ObjectMeta
from cloudprovider.core.exchange import LoadBalancerRequest, ServiceKey, Tenant
from cloudprovider.core.naming import label_value, load_balancer_name

API_VERSION = "loadbalancer.harvesterhci.io/v1beta1"

_ANNOTATIONS = (NETWORK_ANNOTATION, PROJECT_ANNOTATION, NAMESPACE_ANNOTATION, CLUSTER_ANNOTATION)

JsonObject = dict[str, object]


def object_key(tenant: Tenant, service: ServiceKey) -> tuple[str, str]:
    """Return the (namespace, name) of the object that stands for a Service."""
    return tenant.namespace, load_balancer_name(tenant.cluster, service.namespace, service.name, service.uid)


def wanted_object(
    tenant: Tenant, service: ServiceKey, request: LoadBalancerRequest, *, cluster_uid: str, limits: GuestClusterSpec
) -> LoadBalancer:
    """Return the object as it is to be: Harvester's name, labels and annotations, our finalizer, the spec."""
    namespace, name = object_key(tenant, service)
    annotations = {
        NETWORK_ANNOTATION: request.network,
        PROJECT_ANNOTATION: request.scope_project,
        NAMESPACE_ANNOTATION: request.scope_namespace,
        CLUSTER_ANNOTATION: tenant.cluster,
    }
    return LoadBalancer(
        api_version=API_VERSION,
        kind="LoadBalancer",
        metadata=ObjectMeta(
            name=name,
            namespace=namespace,
            labels={
                CLUSTER_LABEL: label_value(tenant.cluster),
                SERVICE_NAMESPACE_LABEL: label_value(service.namespace),
                SERVICE_NAME_LABEL: label_value(service.name),
            },
            annotations={key: value for key, value in annotations.items() if value},
            finalizers=[FINALIZER],
        ),
        spec=_spec(service, request, cluster_uid, limits),
    )


def _spec(
    service: ServiceKey, request: LoadBalancerRequest, cluster_uid: str, limits: GuestClusterSpec
) -> LoadBalancerSpec:
    affinity = request.affinity_seconds
    return LoadBalancerSpec(
        workload_type="cluster",
        ipam=request.ipam,
        ip_pool=request.ip_pool,
        primary_service=request.primary_service,
        dhcp_hostname=request.dhcp_hostname,
        listeners=[
            Listener(name=one.name, port=one.port, protocol=one.protocol, backend_port=one.node_port)
            for one in request.listeners
        ],
        service=ServiceReference(
            namespace=service.namespace, name=service.name, uid=service.uid, cluster_uid=cluster_uid
        ),
        addresses=[str(a) for a in request.addresses],
        ip_families=list(request.ip_families),
        ip_family_policy=request.ip_family_policy,
        mode=request.mode or limits.default_mode,
        external_traffic_policy=request.external_traffic_policy,
        endpoint_nodes=list(request.endpoint_nodes),
        health_check_node_port=request.health_check_node_port,
        session_affinity="None" if affinity is None else "ClientIP",
        session_affinity_timeout_seconds=10800 if affinity is None else affinity,
        drain_seconds=DRAIN_SECONDS if request.drain_seconds is None else request.drain_seconds,
        source_ranges=[str(n) for n in request.sources],
        health_check=None if request.health_check is None else _check(request.health_check),
    )


def _check(check: exchange.HealthCheck) -> HealthCheck:
    return HealthCheck(
        port=check.port,
        protocol=check.protocol,
        path=check.path,
        host=check.host,
        expected_codes=list(check.expected_codes),
        verify_certificate=check.verify_certificate,
        grpc_service=check.grpc_service,
        success_threshold=check.success_threshold,
        failure_threshold=check.failure_threshold,
        period_seconds=check.period_seconds,
        timeout_seconds=check.timeout_seconds,
        failed_connections=check.failed_connections,
    )


def stands_for(lb: LoadBalancer, tenant: Tenant, service: ServiceKey) -> bool:
    """Whether an object is the one of this tenant's Service: by what the bridge wrote into it, never by its name."""
    return service_of(lb) == (tenant, service)


def service_of(lb: LoadBalancer) -> tuple[Tenant, ServiceKey] | None:
    """Return whose Service an object stands for; None for a ``vm`` object and for one of a stock cloud provider."""
    reference, labels = lb.spec.service, lb.metadata.labels
    if lb.spec.workload_type != "cluster" or reference is None:
        return None
    cluster = labels.get(CLUSTER_LABEL, "")
    if (
        not cluster
        or labels.get(SERVICE_NAMESPACE_LABEL) != label_value(reference.namespace)
        or labels.get(SERVICE_NAME_LABEL) != label_value(reference.name)
    ):
        return None
    return Tenant(lb.metadata.namespace, cluster), ServiceKey(reference.namespace, reference.name, reference.uid)


def difference(have: LoadBalancer, want: LoadBalancer) -> JsonObject:
    """Return the merge patch (RFC 7386) that makes ``have`` be as wanted; empty where nothing differs.

    What others put on the object (labels, annotations, finalizers) stays. The patch carries ``have``'s UID as its
    precondition. The trace of a change goes with it, and is none by itself.
    """
    metadata: JsonObject = {}
    labels = _changes(have.metadata.labels, want.metadata.labels, owned=want.metadata.labels)
    annotations = _changes(have.metadata.annotations, want.metadata.annotations, owned=_ANNOTATIONS)
    if labels:
        metadata["labels"] = labels
    if annotations:
        metadata["annotations"] = annotations
    if FINALIZER not in have.metadata.finalizers and not have.metadata.deletion_timestamp:
        metadata["finalizers"] = [*have.metadata.finalizers, FINALIZER]
    patch: JsonObject = {}
    if have.spec != want.spec and (spec := merge_patch(_json(have.spec), _json(want.spec))):
        patch["spec"] = spec
    if metadata or patch:
        if trace := _changes(have.metadata.annotations, want.metadata.annotations, owned=(TRACE_ANNOTATION,)):
            metadata["annotations"] = {**annotations, **trace}
        patch["metadata"] = {**metadata, "uid": have.metadata.uid}
    return patch


def traced(lb: LoadBalancer, trace: str) -> LoadBalancer:
    """Return the object with the trace that it is written in; "": none."""
    if not trace:
        return lb
    annotations = {**lb.metadata.annotations, TRACE_ANNOTATION: trace}
    return msgspec.structs.replace(lb, metadata=msgspec.structs.replace(lb.metadata, annotations=annotations))


def merge_patch(have: Mapping[str, object], want: Mapping[str, object]) -> JsonObject:
    """Return the RFC 7386 patch that turns one JSON object into another."""
    patch: JsonObject = dict.fromkeys(have.keys() - want.keys())
    for key, value in want.items():
        old = have.get(key)
        if old == value and key in have:
            continue
        if isinstance(value, dict) and isinstance(old, dict):
            patch[key] = merge_patch(old, value)
        else:
            patch[key] = value
    return patch


def _changes(
    have: Mapping[str, str], want: Mapping[str, str], *, owned: Mapping[str, str] | tuple[str, ...]
) -> JsonObject:
    return {key: want.get(key) for key in owned if have.get(key) != want.get(key)}


def _json(spec: LoadBalancerSpec) -> JsonObject:
    return cast("JsonObject", msgspec.to_builtins(spec))
