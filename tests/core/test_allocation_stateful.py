"""Addresses are never given twice and never lost, whatever happens in whatever order: writes that are lost or whose
answer is, restarts at any moment, blocks deleted by hand, pools that change; and two controllers on one API server,
since an old leader may not know yet that it is none."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from ipaddress import IPv4Address, ip_address

import msgspec
from hypothesis import seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from cloudprovider.core.allocation import Allocator, Proposal
from cloudprovider.core.api.loadbalancer import Address, LoadBalancer, LoadBalancerStatus
from cloudprovider.core.api.meta import ObjectMeta
from cloudprovider.core.api.pool import IPBlock
from cloudprovider.core.audit import audit
from cloudprovider.core.plan import IPAddress
from cloudprovider.core.pools import survey
from cloudprovider.core.wants import Granted, Release, Want
from tests.core.pools import pool

NOW = "2026-01-01T00:00:00Z"

# Two blocks, two pools that overlap, small enough to run dry.
GENERATIONS = [
    [
        pool("a", "10.0.0.0/23=10.0.0.252-10.0.1.3", created="1"),
        pool("b", "10.0.0.0/23=10.0.1.2-10.0.1.6", created="2"),
    ],
    [
        pool("a", "10.0.0.0/23=10.0.0.252-10.0.1.4", created="1"),
        pool("b", "10.0.0.0/23=10.0.1.2-10.0.1.6", created="2"),
    ],
    [
        pool("a", "10.0.0.0/23=10.0.0.254-10.0.1.1", created="1"),
        pool("b", "10.0.0.0/23=10.0.1.0-10.0.1.6", created="2"),
    ],
]

owners = st.sampled_from([f"ns{i % 2}/lb{i}" for i in range(5)])
pools = st.sampled_from(["a", "b"])
which_one = st.integers(0, 1)
fixed = st.none() | st.sampled_from([IPv4Address("10.0.0.253"), IPv4Address("10.0.1.2"), IPv4Address("10.0.1.5")])


@dataclass
class Server:
    """The API server, as far as blocks go: compare-and-swap on resourceVersion."""

    blocks: dict[str, IPBlock] = field(default_factory=dict)
    version: int = 0

    def write(self, block: IPBlock) -> IPBlock | None:
        """Write a block; None: somebody else did in between."""
        name = block.metadata.name
        there = self.blocks.get(name)
        if block.metadata.resource_version != (there.metadata.resource_version if there is not None else ""):
            return None
        self.version += 1
        metadata = msgspec.structs.replace(block.metadata, resource_version=str(self.version))
        self.blocks[name] = msgspec.structs.replace(block, metadata=metadata)
        return self.blocks[name]


class Machine(RuleBasedStateMachine):
    """What controllers do, and a user who watches what was promised."""

    count_of_controllers = 1

    def __init__(self) -> None:
        super().__init__()
        self.server = Server()
        self.generation = 0
        self.uids: dict[str, str] = {}  # the load balancers there are
        self.count = 0
        self.shown: dict[tuple[str, str], IPAddress] = {}  # (owner, pool): what its status says
        self.controllers = [self._start() for _ in range(self.count_of_controllers)]

    def _pick(self, which: int) -> int:
        return which % self.count_of_controllers

    def _start(self) -> Allocator:
        made = Allocator()
        made.set_pools(survey(GENERATIONS[self.generation]))
        for block in self.server.blocks.values():
            made.load(block)
        return made

    def _write(self, controller: Allocator, proposal: Proposal, lost_answers: frozenset[int]) -> set[str]:
        """Write a proposal's blocks; return which stand."""
        stand = {""}
        for i, block in enumerate(proposal.writes):
            name = block.metadata.name
            stored = self.server.write(block)
            if stored is not None and i not in lost_answers:
                controller.written(proposal, stored)
                stand.add(name)
            elif i in lost_answers:
                controller.doubt(name)
            else:
                self._read(controller, name)
        return stand

    def _read(self, controller: Allocator, name: str) -> None:
        fresh = self.server.blocks.get(name)
        if fresh is None:
            controller.drop(name)
        else:
            controller.load(fresh)

    def _batch(
        self, which: int, wants: Iterable[Want], releases: Iterable[Release], lost_answers: frozenset[int] = frozenset()
    ) -> None:
        controller = self.controllers[self._pick(which)]
        for name in controller.doubted:
            self._read(controller, name)
        proposal = controller.propose(list(wants), list(releases), now=NOW)
        before = set(self.uids)
        stand = self._write(controller, proposal, lost_answers)
        for outcome in proposal.outcomes:
            if isinstance(outcome, Granted) and outcome.block in stand:
                key = (outcome.want.owner, outcome.want.pool)
                if outcome.block:  # not from a cache that may be old: the address is published
                    self.shown[key] = outcome.address
        for release, block in proposal.released:
            if block and block in stand:
                self.shown.pop((release.owner, release.pool), None)
        assert set(self.uids) == before

    @rule(owner=owners)
    def create(self, owner: str) -> None:
        if owner not in self.uids:
            self.count += 1
            self.uids[owner] = f"uid{self.count}"

    @rule(
        which=which_one,
        asked=st.lists(st.tuples(owners, pools, fixed), min_size=1, max_size=6, unique_by=lambda asked: asked[:2]),
        lost=st.frozensets(st.integers(0, 2)),
    )
    def allocate(self, which: int, asked: list[tuple[str, str, IPAddress | None]], lost: frozenset[int]) -> None:
        wants = [
            Want(owner=o, uid=self.uids[o], pool=p, fixed=f, adopt=self.shown.get((o, p)))
            for o, p, f in asked
            if o in self.uids
        ]
        self._batch(which, wants, [], lost)

    @rule(which=which_one, leaving=st.lists(owners, min_size=1, max_size=3, unique=True), asking=owners, into=pools)
    def release(self, which: int, leaving: list[str], asking: str, into: str) -> None:
        """The load balancers go once their addresses are given back; somebody asks in the same batch."""
        gone = {o: self.uids[o] for o in leaving if o in self.uids}
        mine = self.controllers[self._pick(which)].ledger
        releases = [
            Release(pool=h.pool, address=h.address, owner=o, uid=uid)
            for o, uid in gone.items()
            for h in mine.held_by(o)
        ]
        wants = [Want(owner=asking, uid=self.uids[asking], pool=into)] if asking in self.uids.keys() - gone else []
        self._batch(which, wants, releases)
        for owner in gone:
            held = {h.pool for b in self.server.blocks.values() for h in _records(b) if h.owner == owner}
            if not held:
                del self.uids[owner]

    @rule(which=which_one)
    def restart(self, which: int) -> None:
        self.controllers[self._pick(which)] = self._start()

    @precondition(lambda self: self.count_of_controllers == 1)  # as Allocator.set_pools says
    @rule(generation=st.integers(0, len(GENERATIONS) - 1))
    def change_pools(self, generation: int) -> None:
        """Addresses move from one pool to another, with and without what is allocated of them."""
        self.generation = generation
        for controller in self.controllers:
            controller.set_pools(survey(GENERATIONS[generation]))

    @precondition(lambda self: self.server.blocks)
    @rule(data=st.data())
    def delete_a_block_by_hand(self, data: st.DataObject) -> None:
        """Every controller sees it by its watch; what load balancers show comes back by the audit."""
        name = data.draw(st.sampled_from(sorted(self.server.blocks)))
        del self.server.blocks[name]
        for controller in self.controllers:
            controller.drop(name)
        self.repair(0)

    @rule(which=which_one)
    def repair(self, which: int) -> None:
        controller = self.controllers[self._pick(which)] = self._start()
        live = [
            LoadBalancer(
                metadata=ObjectMeta(namespace=o.partition("/")[0], name=o.partition("/")[2], uid=uid),
                status=LoadBalancerStatus(
                    addresses=[
                        Address(ip=str(a), ip_pool=p, prefix_length=23)
                        for (owner, p), a in self.shown.items()
                        if owner == o
                    ]
                ),
            )
            for o, uid in self.uids.items()
        ]
        for _ in range(2):  # a record beside the address in use goes once that is recorded itself
            findings = audit(controller.ledger, live)
            wants = [Want(owner=m.owner, uid=m.uid, pool=m.pool, adopt=m.address) for m in findings.missing]
            self._batch(which, wants, [*findings.dangling, *self._surplus(controller)])
        again = audit(self._start().ledger, live)
        assert again.dangling == ()
        assert again.missing == ()
        owned = [(h.owner, h.pool) for b in self.server.blocks.values() for h in _records(b)]
        assert all(owned.count(key) == 1 for key in self.shown)

    def _surplus(self, controller: Allocator) -> list[Release]:
        """What a load balancer has beside the address that it shows, and gives back itself."""
        return [
            Release(pool=h.pool, address=h.address, owner=h.owner, uid=h.uid)
            for (owner, pool), shown in self.shown.items()
            for h in controller.ledger.held_by(owner)
            if h.pool == pool and h.address != shown and controller.ledger.owners_of(pool, shown)[:1] == (owner,)
        ]

    @invariant()
    def no_address_is_given_twice(self) -> None:
        given = [h.address for b in self.server.blocks.values() for h in _records(b)]
        assert len(given) == len(set(given))  # over all pools: they share a network

    @invariant()
    def an_owner_has_one_address_of_a_pool(self) -> None:
        """Or two, on its way from one to the address that it asks for by name. Two controllers may give an owner one
        each from two blocks; the audit takes back the one not shown."""
        if self.count_of_controllers > 1:
            return
        given = Counter((h.owner, h.pool) for b in self.server.blocks.values() for h in _records(b))
        assert all(count <= 2 for count in given.values())

    @invariant()
    def what_was_shown_stands(self) -> None:
        """No address moves or is taken away from a load balancer that shows it."""
        stand = {(h.owner, h.pool, h.address) for b in self.server.blocks.values() for h in _records(b)}
        assert stand >= {(*key, address) for key, address in self.shown.items()}

    @invariant()
    def nothing_leaks(self) -> None:
        """Every record has a load balancer."""
        for block in self.server.blocks.values():
            for held in _records(block):
                assert held.uid == self.uids.get(held.owner)

    @invariant()
    def a_rebuilt_state_is_the_same(self) -> None:
        """What a controller knows after a start is what one that always ran knows, where it is up to date."""
        for controller in self.controllers:
            fresh = self._start()
            for name, block in self.server.blocks.items():
                if controller.ledger.block(name) == block:
                    assert controller.ledger.mask(name) == fresh.ledger.mask(name)


def _records(block: IPBlock) -> list["Record"]:
    return [Record(block.spec.pool, ip_address(a), r.owner, r.uid) for a, r in block.spec.allocations.items()]


@dataclass(frozen=True)
class Record:
    pool: str
    address: IPAddress
    owner: str
    uid: str


walks = settings(max_examples=150, stateful_step_count=40, deadline=None)


@seed(20260101)
@walks
class OneController(Machine):
    """The same walks in every run."""


@seed(20260102)
@walks
class TwoControllers(Machine):
    """The same walks in every run."""

    count_of_controllers = 2


TestOneController = OneController.TestCase
TestTwoControllers = TwoControllers.TestCase
