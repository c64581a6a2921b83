"""When a load balancer may be created or changed.

Harvester's rules for those of virtual machines, and what DHCP can't do. What may still come (a pool, a range in it) is
warned of, not refused. What a guest cluster's Service asks for is checked where it is read (``core.translate``).
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from ipaddress import ip_address, ip_network

from cloudprovider.core.api.loadbalancer import LoadBalancer, LoadBalancerSpec
from cloudprovider.core.api.pool import IPPool
from cloudprovider.core.errors import Violation
from cloudprovider.core.patterns import LABEL_KEY, LABEL_VALUE
from cloudprovider.core.pools import PoolView
from cloudprovider.core.rules.healthchecks import health_check_advice, health_check_violations
from cloudprovider.core.rules.holdings import Holding
from cloudprovider.core.rules.verdict import Verdict, worsened
from cloudprovider.core.selection import NoPool, request_of, select


def check_load_balancer(new: LoadBalancer, old: LoadBalancer | None) -> Verdict:
    """Judge what a load balancer asks for, by itself; ``old`` None: it is created."""
    return worsened(violations_of(new.spec), violations_of(old.spec) if old is not None else ())


def advise(lb: LoadBalancer) -> Verdict:
    """Warn of what the author of a sound load balancer may not have meant."""
    return Verdict(warnings=(*_selector_advice(lb.spec), *health_check_advice(lb.spec)))


def violations_of(spec: LoadBalancerSpec) -> list[Violation]:
    """Return what is wrong with a load balancer's spec."""
    return [
        *_listeners(spec),
        *health_check_violations(spec),
        *_addresses(spec),
        *_sources(spec),
        *dhcp_violations(spec),
        *_sharing(spec),
    ]


def choose_pool(lb: LoadBalancer, views: Mapping[str, PoolView]) -> tuple[PoolView | None, Verdict]:
    """Return the pool that a sound load balancer's addresses come from, and a warning if there is none (yet)."""
    if lb.spec.ipam == "dhcp":
        return None, Verdict()
    found = select(request_of(lb), views.values())
    if isinstance(found, NoPool):
        return None, Verdict(warnings=(f"no address yet: {found.text}",))
    return views[found.pool], Verdict()


def check_quota(lb: LoadBalancer, pool: IPPool, held: Sequence[Holding]) -> Verdict:
    """Judge whether its namespace may have so many addresses of the pool: refused where the pool is named, else warned
    of. ``held``: what is allocated from the pool.

    What is asked for at the same moment is not allocated yet, and not seen here; the controller counts again.
    """
    limit, namespace, name = pool.spec.addresses_per_tenant, lb.metadata.namespace, pool.metadata.name
    own = f"{namespace}/{lb.metadata.name}"
    used = sum(1 for h in held if h.tenant == namespace and h.owner != own)
    wanted = 2 if len(lb.spec.addresses) == 2 or lb.spec.ip_family_policy == "RequireDualStack" else 1
    if not limit or used + wanted <= limit:
        return Verdict()
    message = (
        f'the pool "{name}" gives a namespace\'s load balancers at most {limit} addresses (its addressesPerTenant),'
        f' and "{namespace}" has {used}: delete one of them, use another pool, or ask an operator for more'
    )
    if not lb.spec.ip_pool:
        return Verdict(warnings=(f"no address yet: {message}",))
    return Verdict((Violation(field="spec.ipPool", reason="QuotaExceeded", message=message),))


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


def _selector_advice(spec: LoadBalancerSpec) -> Iterable[str]:
    """What makes a selector match nothing: it may be meant, while the machines are still to come."""
    at = "spec.backendServerSelector"
    if spec.workload_type == "cluster":
        return
    if not spec.backend_server_selector:
        yield f"{at}: names no labels, so no virtual machine is sent to"
    for key, values in sorted(spec.backend_server_selector.items()):
        if not values:
            yield f"{at}[{key}]: has no value, so no virtual machine matches"
        if LABEL_KEY.fullmatch(key) is None:
            yield f"{at}[{key}]: can't be a label's name, so no virtual machine matches"
        for value in values:
            if LABEL_VALUE.fullmatch(value) is None:
                yield f'{at}[{key}]: "{value}" can\'t be a label\'s value (up to 63 letters, digits, "-", "_" and ".")'


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


def dhcp_violations(spec: LoadBalancerSpec) -> Iterable[Violation]:
    """Yield what is asked for that DHCP can't do. The agents look as well: the webhook may have been away."""
    if spec.ipam != "dhcp":
        return
    if "IPv6" in spec.ip_families:
        message = 'DHCP gives IPv4 addresses only: ask for IPv4, or set ipam to "pool"'
        yield Violation(field="spec.ipFamilies", reason="NotWithDHCP", message=message)
    if spec.ip_family_policy == "RequireDualStack":
        message = 'RequireDualStack can\'t be met, as DHCP gives IPv4 addresses only: set ipam to "pool"'
        yield Violation(field="spec.ipFamilyPolicy", reason="NotWithDHCP", message=message)
    if spec.ip_pool:
        message = (
            f'the DHCP server chooses the address, not the pool "{spec.ip_pool}": leave it out, or set ipam to "pool"'
        )
        yield Violation(field="spec.ipPool", reason="NotWithDHCP", message=message)
    if spec.addresses:
        asked = ", ".join(spec.addresses)
        message = (
            f'the DHCP server chooses the address, {asked} can\'t be asked for: leave it out, or set ipam to "pool"'
        )
        yield Violation(field="spec.addresses", reason="NotWithDHCP", message=message)


def _sharing(spec: LoadBalancerSpec) -> Iterable[Violation]:
    if spec.primary_service and spec.workload_type != "cluster":
        message = (
            f'only a guest cluster\'s Service shares the addresses of another ("{spec.primary_service}"): leave it out'
        )
        yield Violation(field="spec.primaryService", reason="NotForVirtualMachines", message=message)
