"""Every write to load balancers, pools and blocks, in the order in which the API server took it, and what no write may
do: between two moments of rest nothing else could tell."""

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, asynccontextmanager
from typing import Any, Final

from cloudprovider.core.api.loadbalancer import LoadBalancer
from cloudprovider.core.api.meta import KubeObject
from cloudprovider.core.api.pool import IPBlock, IPPool
from cloudprovider.kube.api import KubeClient, Resource
from cloudprovider.kube.resources import IPBLOCKS, IPPOOLS, LOADBALANCERS
from tests.host.walks.handed import handed
from tests.host.walks.state import Place, Record, path, records
from tests.host.walks.wishes import reserved

KINDS: Final[tuple[Resource[Any], ...]] = (LOADBALANCERS, IPPOOLS, IPBLOCKS)
Write = tuple[int, str, bool, KubeObject]
"""(version, kind, whether it deleted, object)."""


class Witness:
    """Follows an API server. ``taken_away``: blocks that somebody deletes by hand, which is no fault."""

    def __init__(self, client: KubeClient) -> None:
        self.taken_away: set[str] = set()
        self.faults: list[str] = []
        self._client = client
        self._writes: list[Write] = []
        self._seen: dict[str, dict[tuple[str, str], KubeObject]] = {r.kind: {} for r in KINDS}
        self._lbs: dict[str, LoadBalancer] = {}
        self._blocks: dict[str, IPBlock] = {}
        self._pools: dict[str, list[IPPool]] = defaultdict(list)
        """As they were since the last look: a decision may be a moment behind the pool."""
        self._shared: dict[Place, set[frozenset[str]]] = defaultdict(set)
        """Who has ever shared an address by its record."""
        self._asked: dict[str, list[LoadBalancer]] = defaultdict(list)
        """As they were since the last look."""
        self._granted: dict[str, set[int]] = defaultdict(set)
        """The versions that a load balancer, by UID, has been given as one that must have both; others: all."""

    def may_share(self, place: Place, one: tuple[str, str], other: tuple[str, str]) -> bool:
        """Whether two load balancers, by (namespace, name), have ever had an address together, or each with a third."""
        found, before = {"/".join(one)}, 0
        while len(found) > before:
            before = len(found)
            found = found.union(*(owners for owners in self._shared[place] if not found.isdisjoint(owners)))
        return "/".join(other) in found

    @asynccontextmanager
    async def watching(self) -> AsyncIterator["Witness"]:
        versions = [(await self._client.list(r)).resource_version for r in KINDS]
        tasks = [asyncio.create_task(self._follow(r, v)) for r, v in zip(KINDS, versions, strict=True)]
        try:
            yield self
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)

    async def _follow(self, resource: Resource[Any], version: str) -> None:
        while True:
            events = self._client.watch(resource, resource_version=version)
            async with aclosing(events):
                async for event in events:
                    version = event.object.metadata.resource_version
                    if event.type == "BOOKMARK":
                        continue
                    gone = event.type == "DELETED"
                    self._writes.append((int(version), resource.kind, gone, event.object))
                    seen = self._seen[resource.kind]
                    if gone:
                        seen.pop(event.object.key, None)
                    else:
                        seen[event.object.key] = event.object

    async def caught_up(self) -> bool:
        """Whether all writes there were have been seen; then judge them."""
        first = int((await self._client.list(IPPOOLS)).resource_version)
        for resource in KINDS:
            listed = {o.key: o.metadata.resource_version for o in (await self._client.list(resource)).items}
            if {k: o.metadata.resource_version for k, o in self._seen[resource.kind].items()} != listed:
                return False
        due = sorted((w for w in self._writes if w[0] <= first), key=lambda w: w[0])
        self._writes = [w for w in self._writes if w[0] > first]
        for _, _, gone, obj in due:
            self.faults += self._judge(obj, gone=gone)
        for name, known in self._pools.items():
            self._pools[name] = known[-1:]
        for name, asked in self._asked.items():
            self._asked[name] = asked[-1:]
        return True

    def halves(self) -> Iterator[str]:
        """Yield who must have an address of both families and has been given one of one: it is to have all or nothing.
        What two hosts write at once, or one that is killed meanwhile, are two writes."""
        for name, lb in self._lbs.items():
            have = {r.version for r in records(self._blocks.values()) if (name, lb.metadata.uid) in r.owners}
            if len(have) == 1 and self._granted[lb.metadata.uid] == have:
                yield f"{name} must have both families, and has been given IPv{have} alone"

    def excuse_halves(self) -> None:
        """What stands now is no fault any more."""
        for lb in self._lbs.values():
            self._granted[lb.metadata.uid] |= {4, 6}

    def _judge(self, obj: KubeObject, *, gone: bool) -> Iterator[str]:
        match obj:
            case LoadBalancer():
                if gone:
                    last = self._lbs.pop(path(obj), None)
                    if last is not None and (last.status.holder is not None or last.status.lease is not None):
                        yield f"{path(obj)} is gone with {last.status.holder} and {last.status.lease}"
                else:
                    self._lbs[path(obj)] = obj
                    self._asked[path(obj)].append(obj)
            case IPPool():
                known = self._pools[obj.metadata.name]
                if not known or known[-1].spec != obj.spec:  # else its summary alone
                    known.append(obj)
            case IPBlock():
                yield from self._judge_block(obj, gone=gone)

    def _judge_block(self, block: IPBlock, *, gone: bool) -> Iterator[str]:
        name = block.metadata.name
        old = self._blocks.pop(name, None)
        if gone:
            if name not in self.taken_away:
                yield f"block {name} is deleted"
            return
        others = {(self._network(r.pool), r.ip) for r in records(self._blocks.values())}
        self._blocks[name] = block
        before = {r.ip: r for r in records([old])} if old is not None else {}
        after = {r.ip: r for r in records([block])}
        for ip, record in after.items():
            self._shared[self._network(record.pool), ip].add(frozenset(owner for owner, _ in record.owners))
            if (self._network(record.pool), ip) in others:
                yield f"{ip} is given twice: {record}"
            if ip not in before:
                yield from self._judge_grant(record, old)
        for ip, record in before.items():
            if (
                ip not in after
                and ip not in block.spec.conflicts
                and block.spec.history.get(ip) not in dict(record.owners)
            ):
                yield f"{ip} is given back by {record.owners}, and its history is {block.spec.history.get(ip)}"
            for owner, uid in set(record.owners) - set(after[ip].owners if ip in after else ()):
                yield from self._judge_release(record, owner, uid, conflict=ip in block.spec.conflicts)

    def _network(self, pool: str) -> str:
        return self._pools[pool][-1].spec.selector.network

    def _judge_grant(self, record: Record, old: IPBlock | None) -> Iterator[str]:
        owner = record.owners[0][0]
        lb = self._lbs.get(owner)
        shown = {a.ip for a in (*lb.status.addresses, *lb.status.next_addresses)} if lb is not None else set()
        self._granted[record.owners[0][1]] |= {record.version} if _must_have_both(self._asked[owner]) else {4, 6}
        if lb is None or record.ip in shown:
            return  # what it shows already is its, wherever it lies
        now = [known[-1] for known in self._pools.values()]
        seen = self._pools[record.pool]
        if not any(record.ip in (handed(pool, _with(now, pool)) or ()) for pool in seen):
            yield f"{record.ip} is no address of {record.pool}, and given to {owner}"
        if not any(reserved(pool, lb).get(record.ip, True) for pool in seen):
            yield f"{record.ip} of {record.pool} is reserved for somebody else, and given to {owner}"
        if old is None:
            return
        if record.ip in old.spec.conflicts and record.ip in self._blocks[old.metadata.name].spec.conflicts:
            yield f"{record.ip} is somebody else's, and given to {owner}"
        version = record.version
        taken = {ip for b in self._blocks.values() for ip in (*b.spec.allocations, *b.spec.conflicts)}
        had = (
            {ip for ip, who in old.spec.history.items() if who == owner} - (taken - {record.ip}) - {*old.spec.conflicts}
        )
        hands = handed(seen[-1], now) or set()
        had = {
            ip for ip in had & hands if Record("", ip, ()).version == version and reserved(seen[-1], lb).get(ip, True)
        }
        own = {ip for pool in seen for ip, mine in reserved(pool, lb).items() if mine}
        if had and len(seen) == 1 and record.ip not in {*had, *own, *lb.spec.addresses}:
            yield f"{owner} had {had} of {record.pool}, which was free, and is given {record.ip}"

    def _judge_release(self, record: Record, owner: str, uid: str, *, conflict: bool) -> Iterator[str]:
        lb = self._lbs.get(owner)
        if lb is None or lb.metadata.uid != uid:
            return
        status = lb.status
        named = {(a.ip_pool, a.ip) for a in (*status.addresses, *status.next_addresses)}
        up = set(status.holder.addresses) if status.holder is not None else set()
        elsewhere = {ip for pool, ip in named if pool != record.pool}
        if record.ip in up - elsewhere:
            yield f"{record.ip} of {record.pool} is taken from {owner}, which has it up: {named}, {status.holder}"
        elif lb.metadata.deletion_timestamp:
            if status.lease is not None:
                yield f"{record.ip} is taken from {owner} before its lease"
        elif conflict:
            if not any(record.ip in _foreign(self._lbs.get(mate)) for mate, _ in record.owners):
                yield f"{record.ip} is taken from {owner} for a conflict that nobody found"
        elif (record.pool, record.ip) in named:
            yield f"{record.ip} is taken from {owner}, which shows it"


def _foreign(lb: LoadBalancer | None) -> set[str]:
    return set() if lb is None else {f.ip for f in lb.status.foreign_addresses}


def _must_have_both(asked: list[LoadBalancer]) -> bool:
    """Whether it has asked for both families all the time, from pools, and shows nothing that would be a half."""
    return bool(asked) and all(
        lb.spec.ip_family_policy == "RequireDualStack"
        and lb.spec.ipam != "dhcp"
        and not lb.spec.primary_service
        and not lb.status.addresses
        for lb in asked
    )


def _with(pools: list[IPPool], one: IPPool) -> list[IPPool]:
    return [one if p.metadata.name == one.metadata.name else p for p in pools]
