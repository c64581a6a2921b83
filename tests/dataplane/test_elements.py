"""Forwards and groups as elements of sets and maps, and back, without a kernel."""

from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address, ip_network

from hypothesis import given
from hypothesis import strategies as st

from cloudprovider.core.mac import MACAddress
from cloudprovider.core.plan import Changes, Former, Forward, Group, GroupId, IPAddress, ListenerKey, Plan
from cloudprovider.dataplane import elements, ruleset_dsr
from cloudprovider.dataplane.elements import BROKEN_FORWARD
from cloudprovider.dataplane.ledger import Ledger
from cloudprovider.dataplane.marks import Step
from cloudprovider.dataplane.shared import Shared, fragments
from cloudprovider.dataplane.tables import BROKEN_GROUP, GroupElements

SEVEN, EIGHT = GroupId(7), GroupId(8)
GROUPS = st.integers(1, (1 << 24) - 1).map(GroupId)
KEYS = st.builds(
    ListenerKey,
    vip=st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6)),
    protocol=st.sampled_from(["TCP", "UDP"]),
    port=st.integers(1, 65535),
)
DSR_FORMER = st.builds(Former, mode=st.just("dsr"), group=GROUPS, by_client=st.booleans())
MACS = st.binary(min_size=6, max_size=6).map(lambda octets: MACAddress.unpack(bytes([octets[0] & 0xFE]) + octets[1:]))
VIP = IPv4Address("10.0.0.100")


def forwards(key: ListenerKey) -> st.SearchStrategy[tuple[ListenerKey, Forward]]:
    bits = key.vip.max_prefixlen
    addresses = st.ip_addresses(v=4) if key.vip.version == 4 else st.ip_addresses(v=6)
    sources = st.frozensets(
        st.tuples(addresses, st.integers(0, bits)).map(lambda n: ip_network(n, strict=False)), max_size=4
    )
    phases = st.one_of(st.tuples(st.none(), st.booleans()), st.tuples(DSR_FORMER, st.just(False)))

    def made(mode: str, group: int, port: int, phase: tuple[Former | None, bool], host: IPAddress | None) -> Forward:
        former, pinned = phase
        if mode == "nat":
            return Forward(GroupId(group), port, former=former, pinned=pinned, predecessor=host)
        return Forward(GroupId(max(1, group)), mode="dsr", former=former, pinned=pinned)

    built = st.builds(
        made,
        st.sampled_from(["nat", "dsr"]),
        st.integers(0, (1 << 24) - 1),
        st.integers(1, 65535),
        phases,
        st.none() | addresses,
    )
    return st.tuples(built, sources, st.booleans()).map(
        lambda parts: (key, replace(parts[0], sources=parts[1], by_client=parts[2]))
    )


LISTENERS = KEYS.flatmap(forwards)


@given(KEYS)
def test_a_listener_is_its_address_and_eight_bytes(key: ListenerKey) -> None:
    packed = elements.listener_key(key)
    assert elements.listener(4 if key.vip.version == 4 else 6, packed) == key
    number = 6 if key.protocol == "TCP" else 17
    assert packed == key.vip.packed + bytes([number, 0, 0, 0]) + key.port.to_bytes(2, "big") + bytes(2)


def test_another_protocol_is_no_listener() -> None:
    assert elements.listener(4, bytes([10, 0, 0, 1, 132, 0, 0, 0, 0, 80, 0, 0])) is None


@given(LISTENERS)
def test_a_forward_survives_its_elements(listener: tuple[ListenerKey, Forward]) -> None:
    key, forward = listener
    assert elements.forward(key, elements.of(key, forward)) == forward


@given(LISTENERS, st.data())
def test_elements_that_do_not_fit_together_are_never_what_they_were(
    listener: tuple[ListenerKey, Forward], data: st.DataObject
) -> None:
    key, forward = listener
    held = elements.of(key, forward)
    place = data.draw(st.sampled_from(sorted(held, key=repr)))
    value = held.pop(place)
    assert elements.forward(key, held) != forward
    if isinstance(value, bytes) and len(value) == 4:
        held[place] = elements.pack_mark(elements.read_mark(value) ^ 0x0100_0000)  # no listener's mark has a step
        assert elements.forward(key, held) == BROKEN_FORWARD


def test_a_former_mode_nat_is_told() -> None:
    key = ListenerKey(VIP, "TCP", 80)
    forward = Forward(SEVEN, mode="dsr", former=Former("nat"))
    assert elements.forward(key, elements.of(key, forward)) == forward


def test_a_group_is_known_by_its_table() -> None:
    for nodes in (
        Group(frozenset({IPv4Address("10.0.0.1"), IPv4Address("10.0.0.2")})),
        Group(frozenset({IPv6Address("fd00::1"), IPv6Address("fd00::2")})),
        Group(frozenset({MACAddress("02:00:00:00:00:01")})),
        Group(frozenset({MACAddress("02:00:00:00:00:01")}), pinned=True),
    ):
        held = GroupElements.of(SEVEN, nodes)
        assert held.group(SEVEN) == nodes
        assert held.group(EIGHT) == BROKEN_GROUP
        (table,) = held.tables.values()
        table[5] = table[6] = bytes(len(table[5]) - 1) + b"\x09"
        assert held.group(SEVEN) == BROKEN_GROUP


@given(st.frozensets(MACS, min_size=1, max_size=5), st.frozensets(MACS, max_size=5))
def test_a_group_that_changes_is_known_by_both_tables(
    members: frozenset[MACAddress], former: frozenset[MACAddress]
) -> None:
    group = Group(frozenset(members), frozenset(former))
    held = GroupElements.of(SEVEN, group)
    assert held.group(SEVEN) == group
    del held.single[ruleset_dsr.steps(6), elements.pack_mark(SEVEN | Step.BEGIN)]
    assert held.group(SEVEN) == BROKEN_GROUP


def test_fragments_go_where_all_listeners_of_a_vip_go() -> None:
    held, ledger = Shared(), Ledger()

    def after(**forwards: Forward | None) -> int | None:
        changes = Changes(forwards={ListenerKey(VIP, "UDP", int(port[1:])): f for port, f in forwards.items()})
        update = held.update(changes, ledger)
        held.commit(update)
        ledger.commit(changes)
        assert held.elements() == Shared(Plan(forwards=ledger.forwards)).elements()
        data = update.wanted[fragments(VIP)]
        return elements.read_mark(data) if isinstance(data, bytes) else None

    dsr = Forward(SEVEN, mode="dsr")
    assert after(p53=dsr) == 0x8600_0007
    assert after(p54=Forward(SEVEN, mode="dsr", by_client=True)) == 0x8600_0007
    assert after(p55=Forward(GroupId(0), 1)) == 0x8600_0007
    assert after(p55=Forward(EIGHT, 1)) == 0x0600_0000
    assert after(p55=Forward(EIGHT, mode="dsr")) == 0x0600_0000
    assert after(p53=None, p54=None) == 0x8600_0008
    assert after(p55=Forward(EIGHT, 1)) is None


def test_a_node_is_counted_while_any_group_has_it() -> None:
    held, ledger = Shared(), Ledger()
    nodes: list[IPAddress | MACAddress] = [VIP, IPv6Address("fd00::1"), MACAddress("02:00:00:00:00:01")]
    for node in nodes:
        one, both = frozenset({node}), Group(frozenset({node}))
        steps: list[tuple[dict[GroupId, Group | None], int]] = [
            ({SEVEN: both}, 2),
            ({EIGHT: both}, 2),
            ({SEVEN: None}, 2),
            ({EIGHT: None}, 0),
        ]
        if isinstance(node, MACAddress):
            other = MACAddress("02:00:00:00:00:02")
            steps[1:1] = [({SEVEN: Group(frozenset({other}), former=one)}, 4), ({SEVEN: both}, 2)]
        for groups, count in steps:
            changes = Changes(groups=groups)
            held.commit(held.update(changes, ledger))
            ledger.commit(changes)
            assert len(held.elements()) == count
