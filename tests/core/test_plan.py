from ipaddress import IPv4Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloudprovider.core.plan import Changes, Forward, Group, GroupId, ListenerKey, Plan, chunks, diff

ADDRESSES = st.integers(0x0A000001, 0x0A000008).map(IPv4Address)
KEYS = st.builds(ListenerKey, vip=ADDRESSES, protocol=st.sampled_from(["TCP", "UDP"]), port=st.integers(80, 82))


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    groups: dict[GroupId, Group] = draw(
        st.dictionaries(st.integers(1, 4).map(GroupId), st.frozensets(ADDRESSES, min_size=1).map(Group), max_size=4)
    )
    forwards = draw(
        st.dictionaries(
            KEYS,
            st.builds(
                Forward,
                group=st.sampled_from([GroupId(0), *groups]),
                backend_port=st.integers(30000, 30002),
                by_client=st.booleans(),
            ),
            max_size=8,
        )
    )
    return Plan(groups=groups, forwards=forwards)


def carry_out(plan: Plan, changes: Changes) -> Plan:
    groups = {**plan.groups, **changes.groups}
    forwards = {**plan.forwards, **changes.forwards}
    return Plan(
        groups={g: n for g, n in groups.items() if n is not None},
        forwards={k: f for k, f in forwards.items() if f is not None},
    )


@given(plans(), plans())
def test_a_difference_turns_one_plan_into_the_other(have: Plan, want: Plan) -> None:
    assert carry_out(have, diff(have, want)) == want
    assert bool(diff(have, want)) == (have != want)


@given(plans(), plans(), st.integers(1, 5), st.integers(1, 3))
def test_chunks_are_small_and_never_refer_to_a_missing_group(have: Plan, want: Plan, size: int, groups: int) -> None:
    now = have
    for part in chunks(diff(have, want), size, groups=groups):
        assert len(part.forwards) in range(1, size + 1) if part.forwards else len(part.groups) in range(1, groups + 1)
        assert not (part.forwards and part.groups)
        now = carry_out(now, part)
        assert {f.group for f in now.forwards.values()} - {0} <= now.groups.keys()
    assert now == want


def test_a_difference_holds_nothing_that_is_as_it_should_be() -> None:
    key = ListenerKey(IPv4Address("10.0.0.1"), "TCP", 80)
    plan = Plan(
        groups={GroupId(1): Group(frozenset({IPv4Address("10.0.0.2")}))},
        forwards={key: Forward(group=GroupId(1), backend_port=30000)},
    )
    assert not diff(plan, plan)
    assert diff(plan, Plan()) == Changes(groups={GroupId(1): None}, forwards={key: None})


def test_a_chunk_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        next(chunks(Changes(), 0))
