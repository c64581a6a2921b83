"""What is wrong with a pool or a load balancer, whoever wrote it: Harvester's rules, without its faults.

The schema (CRD) refuses what one field alone can show; here are the rules that need several fields, or other objects.
"""

from collections import Counter
from collections.abc import Iterable
from ipaddress import ip_address, ip_network

from cloudprovider.core.api.loadbalancer import LoadBalancerSpec
from cloudprovider.core.api.pool import IPPool
from cloudprovider.core.errors import InvalidRequest, Violation
from cloudprovider.core.ranges import PoolRanges, overlaps, parse_ranges
from cloudprovider.core.selection import is_global


def validate_pool(pool: IPPool, others: Iterable[IPPool] = ()) -> list[Violation]:
    """Return what is wrong with a pool, by itself and beside the others of the host.

    Overlaps, equal priorities and second global pools matter only on one network.
    """
    try:
        ranges = parse_ranges(pool.spec.ranges)
    except InvalidRequest as wrong:
        return list(wrong.violations)
    selector, violations = pool.spec.selector, []
    for other in sorted(others, key=lambda p: p.metadata.name):
        name = other.metadata.name
        if name == pool.metadata.name or other.spec.selector.network != selector.network:
            continue
        for common in overlaps(ranges, _ranges_of(other)):
            message = f'{common.text} is in the pool "{name}" too: take it out of one of them'
            violations.append(Violation(field="spec.ranges", reason="Overlap", message=message))
        if selector.priority and selector.priority == other.spec.selector.priority and not is_global(pool):
            message = f'the pool "{name}" has priority {selector.priority} too: choose another one'
            violations.append(Violation(field="spec.selector.priority", reason="Duplicate", message=message))
        if is_global(pool) and is_global(other):
            message = f'the pool "{name}" is the global pool of this network already: there can be one'
            violations.append(Violation(field="spec.selector.scope", reason="Duplicate", message=message))
    return violations


def validate_load_balancer(spec: LoadBalancerSpec) -> list[Violation]:
    """Return what is wrong with a load balancer's spec."""
    return [*_listeners(spec), *_health_check(spec), *_addresses(spec), *_sources(spec)]


def _listeners(spec: LoadBalancerSpec) -> Iterable[Violation]:
    virtual_machine = spec.workload_type != "cluster"
    if virtual_machine and not spec.listeners:
        yield Violation(field="spec.listeners", reason="Required", message="add at least one listener")
    names = Counter(listener.name for listener in spec.listeners)
    ports = Counter((listener.protocol, listener.port) for listener in spec.listeners)
    for i, listener in enumerate(spec.listeners):
        at = f"spec.listeners[{i}]"
        if names[listener.name] > 1 and (listener.name or not virtual_machine):
            message = f'the name "{listener.name}" is used more than once: give each listener its own'
            yield Violation(field=f"{at}.name", reason="Duplicate", message=message)
        if ports[listener.protocol, listener.port] > 1:
            message = f"{listener.protocol} {listener.port} is used more than once: an address has each port once"
            yield Violation(field=f"{at}.port", reason="Duplicate", message=message)
        if virtual_machine and listener.backend_port is None:
            message = "say which port of the virtual machine the traffic goes to"
            yield Violation(field=f"{at}.backendPort", reason="Required", message=message)


def _health_check(spec: LoadBalancerSpec) -> Iterable[Violation]:
    check = spec.health_check
    if check is None or check.port is None:
        return
    if not any(x.protocol == "TCP" and x.backend_port == check.port for x in spec.listeners):
        message = f"{check.port} is no TCP listener's backendPort: choose one of these, they are what is checked"
        yield Violation(field="spec.healthCheck.port", reason="NotAListener", message=message)


def _addresses(spec: LoadBalancerSpec) -> Iterable[Violation]:
    versions: set[int] = set()
    for i, text in enumerate(spec.addresses):
        at = f"spec.addresses[{i}]"
        try:
            address = ip_address(text)
            if "%" in text:
                raise ValueError
        except ValueError:
            message = f'"{text}" is no IP address: write it like 192.168.1.10 or fd00::10'
            yield Violation(field=at, reason="InvalidAddress", message=message)
            continue
        if address.version in versions:
            message = f"a second IPv{address.version} address: a load balancer has one of each family"
            yield Violation(field=at, reason="Duplicate", message=message)
        versions.add(address.version)
        if spec.ip_families and f"IPv{address.version}" not in spec.ip_families:
            message = f"{text} is none of the families asked for ({', '.join(spec.ip_families)})"
            yield Violation(field=at, reason="FamilyMismatch", message=message)


def _sources(spec: LoadBalancerSpec) -> Iterable[Violation]:
    for i, text in enumerate(spec.source_ranges):
        try:
            ip_network(text, strict=False)
        except ValueError:
            message = f'"{text}" is no CIDR: write it like 192.0.2.0/24 or 2001:db8::/32'
            yield Violation(field=f"spec.sourceRanges[{i}]", reason="InvalidCIDR", message=message)


def _ranges_of(pool: IPPool) -> PoolRanges:
    """Return a pool's ranges; none when they are wrong, since then it hands out nothing."""
    try:
        return parse_ranges(pool.spec.ranges)
    except InvalidRequest:
        return PoolRanges((), ())
