"""When flows may have lost what pinned them: against what was tracked before a delta and after it."""

from ipaddress import IPv4Address

from hypothesis import given
from hypothesis import strategies as st

from cloudprovider.core.mac import MACAddress
from cloudprovider.core.plan import Changes, Former, Forward, Group, GroupId, ListenerKey
from cloudprovider.dataplane.ledger import Ledger, changing

A, B = (frozenset([MACAddress.parse(f"02:00:00:00:00:0{n}")]) for n in (1, 2))
ONE, TWO = GroupId(1), GroupId(2)
KEYS = [ListenerKey(IPv4Address("10.0.0.100"), "TCP", port) for port in (80, 443)]

groups = st.sampled_from([Group(A), Group(A, former=B), Group(A, pinned=True)])
forwards = st.builds(
    lambda group, former, pinned: Forward(group, mode="dsr", former=former, pinned=pinned and former is None),
    st.sampled_from([ONE, TWO]),
    st.sampled_from([None, Former("dsr", ONE), Former("nat")]),
    st.booleans(),
)


@given(
    st.tuples(groups, groups),
    st.dictionaries(st.sampled_from(KEYS), forwards),
    st.dictionaries(st.sampled_from([ONE, TWO]), groups),
    st.dictionaries(st.sampled_from(KEYS), st.none() | forwards),
)
def test_a_delta_ends_what_was_tracked_and_is_no_more(
    before: tuple[Group, Group],
    held: dict[ListenerKey, Forward],
    changed: dict[GroupId, Group | None],
    delta: dict[ListenerKey, Forward | None],
) -> None:
    tested = Ledger()
    tested.commit(Changes(groups=dict(zip((ONE, TWO), before, strict=True)), forwards=dict(held)))
    tracked, moving = set(tested.all_tracked()), {n for n, group in tested.groups.items() if changing(group)}
    changes = Changes(groups=changed, forwards=delta)
    ends = tested.ends(changes)
    tested.commit(changes)
    assert ends == bool(
        tracked - set(tested.all_tracked()) or moving - {n for n, g in tested.groups.items() if changing(g)}
    )
