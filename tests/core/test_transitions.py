"""What goes on while a plan changes: rule by rule, then for random histories of changes and flows."""

from dataclasses import replace
from ipaddress import IPv4Address, ip_network

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from cloudprovider.core.mac import MACAddress
from cloudprovider.core.maglev import lookup_table
from cloudprovider.core.plan import Former, Forward, ForwardMode, Group, GroupId, ListenerKey, Member, Plan
from cloudprovider.core.transitions import MOVING_SECONDS, REFUSE, Transitions

VIP = IPv4Address("10.0.0.100")
WEB = ListenerKey(VIP, "TCP", 80)
DNS = ListenerKey(VIP, "UDP", 53)
A, B, C = (MACAddress.parse(f"02:00:00:00:00:0{n}") for n in (1, 2, 3))
N1, N2 = IPv4Address("10.0.0.11"), IPv4Address("10.0.0.12")
ONE, TWO = GroupId(1), GroupId(2)
PASSED = Forward(ONE, mode="dsr")
TRANSLATED = Forward(TWO, 30080)


def nodes(*members: Member) -> frozenset[Member]:
    return frozenset(members)


def started(forward: Forward = PASSED, key: ListenerKey = WEB) -> Transitions:
    tested = Transitions()
    tested.set_group(ONE, nodes(A, B), 0)
    tested.set_group(TWO, nodes(N1, N2), 0)
    tested.set_forward(key, forward, 0, drain=60)
    return tested


def test_what_is_new_has_no_past() -> None:
    tested = started()
    assert tested.groups[ONE] == Group(nodes(A, B))
    assert tested.forwards[WEB] == PASSED
    assert not tested.busy


def test_a_group_moves_then_keeps_its_pins_then_is_as_wanted() -> None:
    tested = started()
    tested.set_group(ONE, nodes(A, B, C), 10)
    assert tested.groups[ONE] == Group(nodes(A, B, C), former=nodes(A, B))
    tested.settle(10 + MOVING_SECONDS - 1)
    assert tested.groups[ONE].former
    tested.settle(10 + MOVING_SECONDS)
    assert tested.groups[ONE] == Group(nodes(A, B, C), pinned=True)
    tested.release({WEB})
    assert tested.groups[ONE].pinned
    tested.release(set())
    assert tested.groups[ONE] == Group(nodes(A, B, C))
    assert not tested.busy


def test_changes_in_a_row_keep_the_first_past_and_start_the_time_anew() -> None:
    tested = started()
    tested.set_group(ONE, nodes(A, B, C), 0)
    tested.set_group(ONE, nodes(A, C), 200)
    tested.settle(MOVING_SECONDS)
    assert tested.groups[ONE] == Group(nodes(A, C), former=nodes(A, B))
    tested.set_group(ONE, nodes(A, B), 210)
    assert tested.groups[ONE] == Group(nodes(A, B), pinned=True)


def test_groups_of_addresses_have_no_past_conntrack_has_it() -> None:
    tested = started(TRANSLATED)
    tested.set_group(TWO, nodes(N1), 10)
    assert tested.groups[TWO] == Group(nodes(N1))


def test_a_node_that_left_is_cut_when_its_drain_time_is_over() -> None:
    tested = started()
    tested.set_group(ONE, nodes(A), 10)
    assert not tested.due(69)
    assert tested.due(70).pins == {B: {WEB}}
    assert not tested.due(70)


def test_a_node_whose_time_is_over_is_no_way_to_go_on_by_any_more() -> None:
    tested = started()
    tested.set_group(ONE, nodes(A, C), 10)
    tested.due(70)
    assert tested.groups[ONE] == Group(nodes(A, C), former=nodes(A))
    tested.set_group(ONE, nodes(A), 80)
    assert tested.groups[ONE] == Group(nodes(A), pinned=True)


def test_a_listener_whose_former_node_s_time_is_over_goes_by_the_new_choice() -> None:
    tested = started()
    tested.set_group(GroupId(3), nodes(B, C), 10)
    tested.set_forward(WEB, replace(PASSED, group=GroupId(3)), 10, drain=60)
    assert tested.forwards[WEB].former == Former("dsr", ONE)
    assert tested.due(70).pins == {A: {WEB}}
    assert tested.forwards[WEB] == Forward(GroupId(3), mode="dsr", pinned=True)


def test_in_another_mode_no_node_has_left() -> None:
    tested = started()
    tested.set_forward(WEB, TRANSLATED, 10, drain=0)
    assert not tested.due(1000)


def test_where_nobody_is_left_connections_end_in_their_time() -> None:
    tested = started()
    tested.set_forward(WEB, Forward(REFUSE, 30080), 10, drain=60)
    assert tested.due(70).pins == {A: {WEB}, B: {WEB}}


def test_a_node_that_comes_back_in_time_is_not_cut() -> None:
    tested = started()
    tested.set_group(ONE, nodes(A), 10)
    tested.set_group(ONE, nodes(A, B), 20)
    assert not tested.due(1000)


def test_where_all_had_left_and_are_back_in_time_none_is_cut() -> None:
    """As when the host's link was down for a while."""
    for forward in (PASSED, TRANSLATED):
        tested = started(forward)
        tested.set_forward(WEB, Forward(REFUSE, 30080), 10, drain=60)
        tested.set_forward(WEB, forward, 20, drain=60)
        assert not tested.due(1000)


def test_translated_flows_of_a_left_node_end_udp_at_once_tcp_in_time() -> None:
    tested = started(TRANSLATED)
    tested.set_forward(DNS, TRANSLATED, 0, drain=60)
    tested.set_group(TWO, nodes(N1), 10)
    assert tested.due(10).udp == {N2: {DNS}}
    assert tested.due(70).tcp == {N2: {WEB}}


def test_what_the_kernel_refused_to_end_is_due_again() -> None:
    tested = started()
    tested.set_group(ONE, nodes(A), 10)
    undone = tested.due(70)
    tested.again(undone, 70)
    assert tested.due(70).pins == undone.pins


def test_a_listener_that_changes_its_mode_goes_on_as_it_did() -> None:
    tested = started()
    tested.set_forward(WEB, TRANSLATED, 10, drain=60)
    assert tested.forwards[WEB] == replace(TRANSLATED, former=Former("dsr", ONE))
    tested.remove_group(ONE)
    assert ONE in tested.groups
    tested.settle(10 + MOVING_SECONDS)
    assert tested.forwards[WEB] == replace(TRANSLATED, pinned=True)
    assert ONE not in tested.groups
    tested.release(set())
    assert tested.forwards[WEB] == TRANSLATED


def test_from_translated_to_passed_on() -> None:
    tested = started(TRANSLATED)
    tested.set_forward(WEB, PASSED, 10)
    assert tested.forwards[WEB] == replace(PASSED, former=Former("nat"))


def test_affinity_switched_on_and_off_again() -> None:
    tested = started()
    tested.set_forward(WEB, replace(PASSED, by_client=True), 10)
    assert tested.forwards[WEB].former == Former("dsr", ONE, by_client=False)
    tested.set_forward(WEB, PASSED, 20)
    assert tested.forwards[WEB] == replace(PASSED, pinned=True)


def test_what_refused_has_nothing_under_way() -> None:
    tested = started(Forward(REFUSE, 30080))
    tested.set_forward(WEB, PASSED, 10)
    assert tested.forwards[WEB] == PASSED


def test_other_changes_leave_what_is_under_way_alone() -> None:
    tested = started()
    tested.set_forward(WEB, replace(PASSED, by_client=True), 10)
    former = tested.forwards[WEB].former
    sources = frozenset({ip_network("10.0.0.0/8")})
    tested.set_forward(WEB, replace(PASSED, by_client=True, sources=sources), 20)
    assert tested.forwards[WEB] == replace(PASSED, by_client=True, sources=sources, former=former)


def test_a_removed_listener_leaves_nothing() -> None:
    tested = started()
    tested.set_forward(WEB, TRANSLATED, 10)
    tested.remove_group(ONE)
    tested.remove_group(TWO)
    tested.remove_forward(WEB)
    assert (tested.groups, tested.forwards) == ({}, {})
    assert not tested.busy


def test_the_agent_before_left_a_change_under_way() -> None:
    before = started()
    before.set_group(ONE, nodes(A, B, C), 0)
    tested = started()
    tested.set_group(ONE, nodes(A, B, C), 1)
    fresh = Transitions()
    fresh.set_group(ONE, nodes(A, B, C), 1)
    fresh.set_forward(WEB, PASSED, 1)
    fresh = fresh.from_there(Plan(groups=before.groups, forwards=before.forwards), 1)
    assert fresh.groups == {ONE: Group(nodes(A, B, C), former=nodes(A, B))}
    assert fresh.forwards == {WEB: PASSED}
    fresh.settle(1 + MOVING_SECONDS)
    assert fresh.groups[ONE].pinned


def test_nodes_that_had_left_before_the_agent_came_are_drained_too() -> None:
    def adopted(found: Plan) -> Transitions:
        fresh = Transitions()
        fresh.set_group(ONE, nodes(A), 100)
        fresh.set_forward(WEB, PASSED, 100, drain=60)
        return fresh.from_there(found, 100)

    changing = adopted(Plan(groups={ONE: Group(nodes(A), former=nodes(A, B))}, forwards={WEB: PASSED}))
    assert not changing.due(159)
    assert changing.due(160).pins == {B: {WEB}}
    moved = replace(PASSED, former=Former("dsr", TWO))
    changing = adopted(Plan(groups={ONE: Group(nodes(A)), TWO: Group(nodes(A, C))}, forwards={WEB: moved}))
    assert changing.due(160).pins == {C: {WEB}}
    changed = adopted(Plan(groups={ONE: Group(nodes(A), pinned=True)}, forwards={WEB: PASSED}))
    changed.drain_strays([(WEB, A), (WEB, B), (WEB, STACK), (DNS, B)], 110)
    changed.drain_strays([(WEB, B)], 120)
    assert not changed.due(169)
    assert changed.due(170).pins == {B: {WEB}}


def test_connections_of_a_node_that_left_while_no_agent_ran_have_their_time() -> None:
    found = Plan(groups={TWO: Group(nodes(N1, N2))}, forwards={WEB: TRANSLATED, DNS: TRANSLATED})
    fresh = Transitions()
    fresh.set_group(TWO, nodes(N1), 100)
    for key in (WEB, DNS):
        fresh.set_forward(key, TRANSLATED, 100, drain=60)
    fresh = fresh.from_there(found, 100)
    assert fresh.due(159).udp == {N2: {DNS}}
    assert not fresh.ends_at(159)
    assert fresh.due(160).tcp == {N2: {WEB}}


def test_connections_of_a_node_that_left_before_the_agent_came_have_their_time_in_mode_nat_too() -> None:
    tested = started(TRANSLATED)
    tested.set_forward(DNS, TRANSLATED, 0, drain=60)
    left = IPv4Address("10.0.0.13")
    tested.drain_strays([(WEB, N1), (WEB, left), (DNS, left), (DNS, N2), (replace(WEB, port=81), left)], 100)
    tested.drain_strays([(WEB, left)], 120)
    assert tested.due(159).udp == {left: {DNS}}
    assert not tested.due(159)
    assert tested.due(160).tcp == {left: {WEB}}
    passing = started(PASSED)  # to which address a node's MAC belongs is not known here
    passing.drain_strays([(WEB, left)], 100)
    assert not passing.busy


def test_what_has_changed_while_no_agent_ran_is_a_change() -> None:
    fresh = Transitions()
    fresh.set_group(ONE, nodes(A, C), 1)
    fresh.set_forward(WEB, replace(PASSED, by_client=True), 1)
    stale = ListenerKey(VIP, "TCP", 443)
    left = Plan(groups={ONE: Group(nodes(A, B)), TWO: Group(nodes(C))}, forwards={WEB: PASSED, stale: PASSED})
    fresh = fresh.from_there(left, 1)
    assert fresh.groups == {ONE: Group(nodes(A, C), former=nodes(A, B))}
    assert fresh.forwards == {WEB: replace(PASSED, by_client=True, former=Former("dsr", ONE))}


SIZE = 31
"""Slots of the model's tables."""
STACK = MACAddress.parse("00:00:00:00:00:00")


class Kernel:
    """Does with flows what :class:`Group` and :class:`Forward` say that the kernel does. A flow is a number."""

    def __init__(self) -> None:
        self.pins: dict[tuple[ListenerKey, int], MACAddress] = {}
        self.conntrack: dict[tuple[ListenerKey, int], Member] = {}

    def packet(self, plan: Transitions, key: ListenerKey, flow: int, *, syn: bool) -> Member | None:
        """Where the packet goes; None: refused."""
        forward = plan.forwards[key]
        group = plan.groups.get(forward.group)
        at = (key, flow)
        if forward.former is not None or forward.pinned:
            if syn:
                self.pins.pop(at, None)
            elif at in self.pins:
                return self.to(plan, key, flow, self.pins[at])
        if forward.former is not None:
            f = Former(forward.mode, forward.group, by_client=forward.by_client) if syn else forward.former
            self.pins[at] = self.choose(plan, f, flow, syn=syn)
            return self.to(plan, key, flow, self.pins[at])
        if forward.mode == "nat":
            return self.translate(plan, key, flow)
        assert group is not None
        if syn and (group.former or group.pinned):
            self.pins.pop(at, None)
        if at in self.pins and (group.former or group.pinned):
            return self.pins[at]
        table = group.former if group.former and not syn else group.members
        chosen = pick(table, flow, by_client=forward.by_client)
        if group.former:
            self.pins[at] = chosen
        return chosen

    def choose(self, plan: Transitions, by: Former, flow: int, *, syn: bool) -> MACAddress:
        if by.mode == "nat":
            return STACK
        group = plan.groups[by.group]
        return pick(group.former if group.former and not syn else group.members, flow, by_client=by.by_client)

    def to(self, plan: Transitions, key: ListenerKey, flow: int, chosen: MACAddress) -> Member | None:
        return self.translate(plan, key, flow) if chosen == STACK else chosen

    def translate(self, plan: Transitions, key: ListenerKey, flow: int) -> Member | None:
        at = (key, flow)
        if at not in self.conntrack:
            forward = plan.forwards[key]
            if forward.mode == "dsr" or forward.group == REFUSE:
                return None
            ordered = sorted(plan.groups[forward.group].members, key=lambda m: m.packed)
            self.conntrack[at] = ordered[lookup_table(ordered, SIZE)[flow % SIZE]]
        return self.conntrack[at]

    def end(self, plan: Transitions, now: float) -> None:
        due = plan.due(now)
        for mac, keys in due.pins.items():
            for at in [at for at, pin in self.pins.items() if pin == mac and at[0] in keys]:
                del self.pins[at]
        for address, keys in due.tcp.items():
            for at in [at for at, to in self.conntrack.items() if to == address and at[0] in keys]:
                del self.conntrack[at]


def pick(members: frozenset[Member], flow: int, *, by_client: bool) -> MACAddress:
    ordered = sorted(members, key=lambda m: m.packed)
    found = ordered[lookup_table(ordered, SIZE)[(flow // 7 if by_client else flow) % SIZE]]
    assert isinstance(found, MACAddress)
    return found


macs = st.frozensets(st.sampled_from([A, B, C]), min_size=1)
addresses = st.frozensets(st.sampled_from([N1, N2]), min_size=1)


class Histories(RuleBasedStateMachine):
    """Flows that send now and then stay with their node for as long as it belongs to the listener, whatever changes:
    the node set, the mode, the affinity, the group."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.tested = Transitions()
        self.kernel = Kernel()
        self.flows: dict[int, Member | None] = {}

    @initialize(passed=macs, other=macs, translated=addresses)
    def begin(self, passed: frozenset[Member], other: frozenset[Member], translated: frozenset[Member]) -> None:
        self.tested.set_group(ONE, passed, 0)
        self.tested.set_group(TWO, other, 0)
        self.tested.set_group(GroupId(3), translated, 0)
        self.tested.set_forward(WEB, PASSED, 0, drain=1e9)
        self.connect(range(8))

    def connect(self, flows: range) -> None:
        for flow in flows:
            self.flows[flow] = self.kernel.packet(self.tested, WEB, flow, syn=True)

    @rule(start=st.integers(0, 90))
    def connect_anew(self, start: int) -> None:
        """A client uses its ports again."""
        self.kernel.conntrack = {
            at: to for at, to in self.kernel.conntrack.items() if at[1] not in range(start, start + 5)
        }
        self.connect(range(start, start + 5))

    @rule(number=st.sampled_from([ONE, TWO]), members=macs)
    def nodes_change(self, number: GroupId, members: frozenset[Member]) -> None:
        self.tested.set_group(number, members, self.now)

    @rule(members=addresses)
    def addresses_change(self, members: frozenset[Member]) -> None:
        self.tested.set_group(GroupId(3), members, self.now)

    @rule(number=st.sampled_from([ONE, TWO, GroupId(3)]), by_client=st.booleans())
    def listener_changes(self, number: GroupId, by_client: bool) -> None:
        mode: ForwardMode = "nat" if number == GroupId(3) else "dsr"
        forward = Forward(number, 30080 if mode == "nat" else 0, mode=mode, by_client=by_client)
        self.tested.set_forward(WEB, forward, self.now, drain=1e9)

    @rule(seconds=st.sampled_from([1.0, 100.0, MOVING_SECONDS]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        self.tested.settle(self.now)
        self.kernel.end(self.tested, self.now)
        self.tested.release({key for key, _ in self.kernel.pins})

    @rule(start=st.integers(0, 90))
    def flows_end(self, start: int) -> None:
        for flow in range(start, start + 5):
            self.flows.pop(flow, None)
            self.kernel.pins.pop((WEB, flow), None)

    @invariant()
    def flows_stay(self) -> None:
        for flow, node in self.flows.items():
            assert self.kernel.packet(self.tested, WEB, flow, syn=False) == node

    @invariant()
    def who_left_is_forgotten_in_time(self) -> None:
        assert sum(map(len, self.tested._left_by.values())) == len(self.tested._leaving)

    @invariant()
    def new_flows_go_to_members_only(self) -> None:
        forward = self.tested.forwards.get(WEB)
        if forward is not None:
            chosen = Kernel().packet(self.tested, WEB, 1234, syn=True)
            assert chosen in self.tested.groups[forward.group].members


TestHistories = Histories.TestCase
TestHistories.settings = settings(max_examples=100, stateful_step_count=30, deadline=None)
