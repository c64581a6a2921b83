"""What an installation needs, judged: plain facts in, findings out."""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Final, Literal

import msgspec

from cloudprovider.core.api.bgp import BGPAdvertisement, BGPPeer
from cloudprovider.core.api.guestcluster import GuestCluster
from cloudprovider.core.api.kubernetes import Lease
from cloudprovider.core.naming import GUEST_PROGRAM
from cloudprovider.core.permissions import SYSTEM, Permission, program_of
from cloudprovider.core.steps import running
from cloudprovider.core.times import parse_time

Verdict = Literal["ok", "warning", "wrong", "unknown"]

CLOCK_WARNING: Final = timedelta(seconds=5)
CLOCK_WRONG: Final = timedelta(seconds=60)
"""Certificates are made with five minutes' slack; tokens and Leases begin to fail long before."""
SILENCE: Final = timedelta(minutes=5)
"""A guest's bridge is heard, and that noted, once a minute."""
ENDING: Final = timedelta(days=30)


class Finding(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """One thing that was looked at. ``unknown``: it could not be, and ``message`` says why."""

    name: str
    verdict: Verdict
    message: str
    todo: str = ""


def clock(local: datetime, server: datetime | None) -> Finding:
    """Compare this machine's clock with the API server's, which says whole seconds."""
    if server is None:
        return Finding(name="clock", verdict="unknown", message="the API server does not say its time")
    off = (local - server).total_seconds()
    apart = timedelta(seconds=0.0 if 0 <= off < 1 else abs(off))
    message = f"{apart.total_seconds():.0f} s {'ahead of' if off > 0 else 'behind'} the API server's"
    if apart <= CLOCK_WARNING:
        return Finding(name="clock", verdict="ok", message=message if apart >= timedelta(seconds=1) else "in step")
    todo = "run NTP here and on the API server's nodes; certificates fail when clocks differ"
    return Finding(name="clock", verdict="wrong" if apart > CLOCK_WRONG else "warning", message=message, todo=todo)


def definition(name: str, installed: Any, ours: Any) -> Finding:
    """Compare the schema of a kind with the one that this version knows. ``installed`` None: there is none."""
    todo = "cloudprovider crds | kubectl apply --server-side --force-conflicts -f -"
    if installed is None:
        return Finding(name=f"CRD {name}", verdict="wrong", message="it is not there", todo=todo)
    missing = sorted(_paths(ours, ()) - _paths(installed, ()))
    more = sorted(_paths(installed, ()) - _paths(ours, ()))
    if missing:
        lacks = f"of another version: it lacks {_first(missing)}"
        return Finding(name=f"CRD {name}", verdict="wrong", message=lacks, todo=todo)
    if more:
        return Finding(
            name=f"CRD {name}",
            verdict="warning",
            message=f"of another version, newer or changed: this one does not know {_first(more)}",
            todo="use the kubectl-lb of that version",
        )
    return Finding(name=f"CRD {name}", verdict="ok", message="there, of this version")


def permissions(allowed: Mapping[Permission, bool], who: str) -> Finding:
    """Judge what an account may do: somebody who looks, or one of our programs."""
    missing = "; ".join(p.text for p, yes in sorted(allowed.items()) if not yes)
    program = program_of(who)
    if not missing:
        needs = f"{program} needs" if program else "kubectl lb needs"
        return Finding(name="permissions", verdict="ok", message=f"{who} may do all that {needs}")
    message = f"{who} may not {missing}"
    if program:
        side = "guest" if program == GUEST_PROGRAM else "host"
        return Finding(
            name="permissions", verdict="wrong", message=message, todo=f"apply the roles of manifests/{side} again"
        )
    todo = "have an administrator allow it; without it kubectl lb shows less"
    return Finding(name="permissions", verdict="warning", message=message, todo=todo)


def certificate(name: str, not_before: datetime, not_after: datetime, now: datetime, todo: str) -> Finding:
    """Judge a certificate by its dates."""
    ends = f"{not_after:%Y-%m-%d}"
    if now < not_before:
        message = f"is valid only from {not_before:%Y-%m-%d %H:%M} on: is the clock wrong where it was made?"
        return Finding(name=name, verdict="wrong", message=message, todo=todo)
    if now >= not_after:
        return Finding(name=name, verdict="wrong", message=f"has ended on {ends}", todo=todo)
    left = (not_after - now).days
    message = f"valid until {ends}, {left} days"
    if not_after - now < ENDING:
        return Finding(name=name, verdict="warning", message=message, todo=todo)
    return Finding(name=name, verdict="ok", message=message)


def program(name: str, leases: Sequence[Lease] | None, now: datetime) -> Finding:
    """Judge whether a program runs, by its Lease."""
    state, message = running(name, leases, now)
    if state == "unknown":
        return Finding(name=name, verdict="unknown", message=message, todo=f"read Leases in {SYSTEM}")
    todo = f"kubectl -n {SYSTEM} get pods,leases; is the clock of its host right?"
    if state == "ok":
        return Finding(name=name, verdict="ok", message=message)
    return Finding(name=name, verdict="wrong", message=message, todo=todo)


def guests(clusters: Iterable[GuestCluster], now: datetime) -> Iterator[Finding]:
    """Judge when the guests were last heard."""
    for cluster in sorted(clusters, key=lambda c: c.key):
        name, said = f"guest {'/'.join(cluster.key)}", cluster.status.last_seen_time
        heard = parse_time(said)
        if heard is None:
            todo = "install cloudprovider guest there, with the certificate of this tenant"
            yield Finding(name=name, verdict="warning", message="has never called", todo=todo)
            continue
        silent = now - heard
        if silent > SILENCE:
            message = f"has not called since {said}; what is forwarded goes on"
            yield Finding(name=name, verdict="warning", message=message, todo="kubectl lb check there")
        else:
            version = f", version {cluster.status.guest_version}" if cluster.status.guest_version else ""
            fine = f"heard {silent.total_seconds():.0f} s ago{version}"
            ends = cluster.status.certificate.not_after if cluster.status.certificate is not None else ""
            if (end := parse_time(ends)) is not None and end - now < ENDING:
                message = f"{fine}; its certificate ends at {ends}, and has not been renewed in time"
                todo = "the guest's log says why; cloudprovider tenant rotate gives it another"
                yield Finding(name=name, verdict="warning", message=message, todo=todo)
            else:
                yield Finding(name=name, verdict="ok", message=fine)


def routers(peers: Iterable[BGPPeer], advertisements: Collection[BGPAdvertisement]) -> Iterator[Finding]:
    """Judge how hosts stand with routers, by their own words, and what becomes of what is to be said."""
    there = sorted(peers, key=lambda peer: peer.metadata.name)
    for peer in there:
        name, sessions = f"BGP router {peer.metadata.name}", sorted(peer.status.sessions, key=lambda s: s.node)
        down = [s for s in sessions if s.state != "Established"]
        if not sessions:
            todo = "does any host match its nodeSelectors, and does the agent run there?"
            yield Finding(name=name, verdict="warning", message="no host speaks to it", todo=todo)
        elif down:
            message = f"no session on {_first(s.node for s in down)} (of {len(sessions)} hosts); {down[0].error}"
            verdict: Verdict = "warning" if len(down) < len(sessions) else "wrong"
            yield Finding(
                name=name, verdict=verdict, message=message, todo=f"kubectl get bgppeer {peer.metadata.name} -o yaml"
            )
        else:
            said = max(s.advertised for s in sessions)
            yield Finding(name=name, verdict="ok", message=f"{len(sessions)} hosts, {said} addresses said")
    if there and not advertisements:
        message = "there is no BGPAdvertisement: routers are told of no address"
        yield Finding(name="BGP", verdict="warning", message=message, todo="docs/bgp.md has one")
    for one in sorted(advertisements, key=lambda a: a.metadata.name):
        for host in sorted((h for h in one.status.hosts if h.problem), key=lambda h: h.node)[:1]:
            name, message = f"BGP advertisement {one.metadata.name}", f"{host.node}: {host.problem}"
            yield Finding(name=name, verdict="warning", message=message)


def _first(names: Iterable[str]) -> str:
    listed = list(names)
    return ", ".join(listed[:3]) + (f" and {len(listed) - 3} more" if len(listed) > 3 else "")


def networks(
    of_pools: Mapping[str, Collection[str]],
    of_agents: Mapping[str, Collection[str]] | None,
    nodes: Collection[str] | None,
) -> Iterator[Finding]:
    """Compare the networks that pools name with those that agents stand on.

    ``of_pools``: network to its pools; ``of_agents``: host to its networks, by the files of the DaemonSet; None: they
    can't be read. ``nodes``: the hosts there are.
    """
    if of_agents is None:
        yield Finding(name="networks", verdict="unknown", message="the agents' files (ConfigMap) can't be read")
        return
    without = sorted(set(nodes or ()) - set(of_agents))
    if without:
        yield Finding(
            name="networks",
            verdict="warning",
            message=f"no file for {', '.join(without)} in the agents' ConfigMap: the agent does not start there",
            todo="add NODENAME.yaml for each, or keep the agent off these nodes",
        )
    for network, pools in sorted(of_pools.items()):
        said = network or "the management network"
        hosts = sorted(host for host, there in of_agents.items() if network in there)
        if hosts:
            yield Finding(name="networks", verdict="ok", message=f"{said}: {', '.join(hosts)}")
        else:
            message = f"no agent stands on {said}, which {_pools(pools)} for"
            yield Finding(name="networks", verdict="wrong", message=message, todo="add it to the agents' files")


def _pools(names: Iterable[str]) -> str:
    listed = sorted(names)
    return f"the pool{'s' if len(listed) > 1 else ''} {', '.join(listed)} {'are' if len(listed) > 1 else 'is'}"


def _paths(schema: Any, at: tuple[str, ...]) -> set[str]:
    """The fields of a structural schema, as "spec.ranges.subnet"."""
    if not isinstance(schema, dict):
        return set()
    found: set[str] = set()
    for name, child in (schema.get("properties") or {}).items():
        if at or name in ("spec", "status"):
            found |= {".".join((*at, name))} | _paths(child, (*at, name))
    for key in ("items", "additionalProperties"):
        if isinstance(schema.get(key), dict):
            found |= _paths(schema[key], at)
    return found
