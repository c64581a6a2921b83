"""Which pool serves a request: Harvester's policy step by step, what it does better, and that it always says why."""

from ipaddress import IPv4Address, ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloudprovider.core.api.guestcluster import GuestClusterSpec
from cloudprovider.core.api.loadbalancer import LoadBalancer, LoadBalancerSpec
from cloudprovider.core.api.meta import ObjectMeta
from cloudprovider.core.api.pool import IPPool, Scope
from cloudprovider.core.conditions import MAX_MESSAGE
from cloudprovider.core.pools import survey
from cloudprovider.core.selection import NoPool, Request, Selected, TenantLimits, request_of, select
from tests.core.pools import EVERYBODY, pool

GUEST = Request(namespace="team", project="c-1/p-1", cluster="gc", guest=True, tenant=TenantLimits())
MACHINE = Request(namespace="team")
OWN = Scope(project="c-1/p-1", namespace="team", guest_cluster="gc")


def with_(request: Request, **changes: object) -> Request:
    return Request(**{**vars(request), **changes})


def chosen(request: Request, *pools: IPPool) -> str:
    result = select(request, survey(pools).values())
    assert isinstance(result, Selected), result.text
    return result.pool


def refused(request: Request, *pools: IPPool) -> NoPool:
    result = select(request, survey(pools).values())
    assert isinstance(result, NoPool), f"selected {result.pool}"
    return result


# --- the steps ---


def test_a_named_pool_needs_no_scope_for_the_hosts_own() -> None:
    other = Scope(project="", namespace="other", guest_cluster="")
    assert chosen(with_(MACHINE, pool="b"), pool("a", "10.0.0.0/24"), pool("b", "10.1.0.0/24", scope=[other])) == "b"


def test_a_named_pool_of_any_network_serves_who_asks_for_no_network() -> None:
    assert chosen(with_(GUEST, pool="b"), pool("b", network="default/vlan7")) == "b"


def test_a_named_pool_of_another_network_than_asked_is_refused() -> None:
    result = refused(with_(GUEST, pool="b", network="default/vlan8"), pool("b", network="default/vlan7"))
    assert [(r.pool, r.reason) for r in result.reasons] == [("b", "WrongNetwork")]
    assert 'the network "default/vlan7"' in result.text
    assert 'the network "default/vlan8"' in result.text


@pytest.mark.parametrize(
    ("scope", "matches"),
    [
        (OWN, True),
        (Scope(project="*", namespace="team", guest_cluster="*"), True),
        (Scope(project="c-1/p-1", namespace="*", guest_cluster="gc"), True),
        (Scope(project="c-2/p-2", namespace="team", guest_cluster="gc"), False),
        (Scope(project="*", namespace="other", guest_cluster="*"), False),
        (Scope(project="*", namespace="*", guest_cluster="gc2"), False),
        (Scope(project="*", namespace="", guest_cluster="*"), False),  # an empty namespace is never "any"
    ],
)
def test_every_part_of_a_scope_must_match(scope: Scope, *, matches: bool) -> None:
    result = select(GUEST, survey([pool("a", scope=[scope])]).values())
    assert isinstance(result, Selected) == matches


def test_one_matching_scope_of_several_is_enough() -> None:
    assert chosen(GUEST, pool("a", scope=[Scope(project="x", namespace="x", guest_cluster="x"), OWN])) == "a"


def test_an_empty_scope_list_matches_nothing() -> None:
    assert "scope is empty" in refused(MACHINE, pool("a", scope=[])).text


def test_the_highest_priority_wins_then_the_name() -> None:
    scope = [OWN]
    low, high = pool("a", "10.0.0.0/24", scope=scope, priority=1), pool("z", "10.1.0.0/24", scope=scope, priority=9)
    twin = pool("y", "10.2.0.0/24", scope=scope, priority=9)
    assert chosen(GUEST, low, high) == "z"
    assert chosen(GUEST, low, high, twin) == chosen(GUEST, twin, high, low) == "y"


def test_a_virtual_machines_request_carries_only_its_namespace() -> None:
    assert chosen(MACHINE, pool("a", scope=[Scope(project="", namespace="team", guest_cluster="")])) == "a"
    refused(MACHINE, pool("a", scope=[OWN]))


def test_the_global_pool_is_for_who_finds_no_other_however_high_its_priority() -> None:
    everybody, own = pool("g", "10.0.0.0/24", priority=99), pool("own", "10.1.0.0/24", scope=[OWN])
    assert chosen(GUEST, everybody, own) == "own"
    assert chosen(with_(GUEST, cluster="other"), everybody, own) == "g"


def test_two_scopes_that_let_everybody_in_make_no_global_pool() -> None:
    wide = pool("wide", "10.0.0.0/24", scope=[EVERYBODY, EVERYBODY])
    assert chosen(GUEST, wide, pool("g", "10.1.0.0/24", priority=9)) == "wide"


def test_the_network_is_hard_for_the_global_pool_too() -> None:
    here, there = pool("here", network=""), pool("there", network="default/vlan7")
    assert chosen(MACHINE, here, there) == "here"
    assert chosen(with_(MACHINE, network="default/vlan7"), here, there) == "there"
    refused(with_(MACHINE, network="default/vlan8"), here, there)


def test_empty_project_and_cluster_are_any_for_guests_even_where_there_is_a_global_pool() -> None:
    loose = pool("loose", "10.1.0.0/24", scope=[Scope(project="", namespace="team", guest_cluster="")])
    everybody = pool("g", "10.0.0.0/24", priority=9)
    assert chosen(GUEST, loose, everybody) == "loose"
    assert chosen(with_(GUEST, namespace="other"), loose, everybody) == "g"
    # strict matches come first
    assert chosen(GUEST, loose, pool("own", "10.2.0.0/24", scope=[OWN])) == "own"


# --- what cannot serve takes no part ---


def test_pools_that_cannot_serve_are_passed_over() -> None:
    good = pool("z", "10.9.0.0/24")
    assert chosen(MACHINE, pool("a", priority=9, deleted="2026-01-02T00:00:00Z"), good) == "z"
    assert chosen(MACHINE, pool("a", "banana", priority=9), good) == "z"
    assert chosen(with_(MACHINE, versions=frozenset({6})), good, pool("six", "fd00::/64")) == "six"


def test_a_fixed_address_chooses_among_the_pools_that_match() -> None:
    first, second = pool("a", "10.0.0.0/24", priority=9), pool("b", "10.1.0.0/24")
    assert chosen(with_(MACHINE, fixed=(IPv4Address("10.1.0.9"),)), first, second) == "b"
    result = refused(with_(MACHINE, fixed=(IPv4Address("10.2.0.9"),)), first, second)
    assert result.reason == "AddressNotInPool"
    assert [r.pool for r in result.reasons] == ["a", "b"]


def test_an_address_shown_before_is_taken_back_from_its_pool() -> None:
    own, everybody = pool("own", "10.1.0.0/24", scope=[OWN], priority=9), pool("g", "10.0.0.0/24")
    assert chosen(with_(GUEST, preferred=(IPv4Address("10.0.0.9"),)), own, everybody) == "g"
    # but never against the scope, or what was asked for
    closed = pool("g", "10.0.0.0/24", scope=[Scope(project="x", namespace="x", guest_cluster="x")])
    assert chosen(with_(GUEST, preferred=(IPv4Address("10.0.0.9"),)), own, closed) == "own"
    assert chosen(with_(GUEST, pool="own", preferred=(IPv4Address("10.0.0.9"),)), own, everybody) == "own"


# --- tenants ---


def test_a_tenants_named_pool_must_be_in_its_scope() -> None:
    closed = pool("secret", scope=[Scope(project="x", namespace="x", guest_cluster="x")])
    result = refused(with_(GUEST, pool="secret"), closed)
    assert result.reason == "PoolNotFound"
    # told just as a pool that does not exist, so that names can't be guessed
    assert result.text == refused(with_(GUEST, pool="secret")).text


def test_both_the_operators_lists_and_the_scope_must_allow_a_pool() -> None:
    a, b = pool("a", "10.0.0.0/24", priority=9), pool("b", "10.1.0.0/24")
    assert chosen(with_(GUEST, tenant=TenantLimits(pools=frozenset({"b"}))), a, b) == "b"
    assert chosen(with_(GUEST, tenant=TenantLimits.of(GuestClusterSpec(pools=["b"], networks=[""]))), a, b) == "b"
    result = refused(with_(GUEST, tenant=TenantLimits(networks=frozenset({"default/vlan7"}))), a, b)
    assert result.hidden == 2
    assert not result.reasons


def test_reasons_name_only_pools_open_to_the_tenant_the_rest_is_a_number() -> None:
    closed = [pool(f"secret-{i}", f"10.{i}.0.0/24", scope=[Scope(project="x")]) for i in range(3)]
    there = pool("there", "10.9.0.0/24", network="default/vlan7")
    result = refused(GUEST, there, *closed)
    assert [r.pool for r in result.reasons] == ["there"]
    assert result.hidden == 3
    assert "secret" not in result.text
    assert "3 other pools" in result.text
    # the host's own users see all of them
    assert {r.pool for r in refused(MACHINE, there, *closed).reasons} == {"there", "secret-0", "secret-1", "secret-2"}


def test_annotations_only_narrow() -> None:
    theirs = pool("theirs", "10.0.0.0/24", scope=[Scope(project="c-2/p-2", namespace="*", guest_cluster="*")])
    ours = pool("ours", "10.1.0.0/24", scope=[Scope(project="c-1/p-1", namespace="*", guest_cluster="*")])
    wide = pool("wide", "10.2.0.0/24", scope=[Scope(project="*", namespace="team", guest_cluster="*")])
    pools = (theirs, ours, wide)
    for claim in ("c-2/p-2", "*", ""):
        assert chosen(with_(GUEST, narrow_project=claim), *pools) in {"ours", "wide"}
    assert chosen(with_(GUEST, narrow_project="c-2/p-2"), *pools) == "wide"
    assert chosen(with_(GUEST, narrow_project="c-1/p-1"), *pools) == "ours"
    result = refused(with_(GUEST, narrow_project="c-2/p-2"), ours)
    assert 'narrows the choice to project "c-2/p-2"' in result.text
    named = refused(with_(GUEST, narrow_project="c-2/p-2", pool="ours"), ours)
    assert named.reason == "PoolNotPermitted"


@given(
    st.sampled_from(["", "*", "c-1/p-1", "c-2/p-2"]),
    st.sampled_from(["", "*", "team", "other"]),
    st.lists(
        st.builds(
            Scope,
            project=st.sampled_from(["", "*", "c-1/p-1", "c-2/p-2"]),
            namespace=st.sampled_from(["", "*", "team", "other"]),
            guest_cluster=st.sampled_from(["", "*", "gc", "gc2"]),
        ),
        max_size=3,
    ),
)
def test_nothing_a_tenant_writes_opens_a_pool_that_its_identity_does_not(
    project: str, namespace: str, scope: list[Scope]
) -> None:
    pools = survey([pool("a", scope=scope)]).values()
    for name in ("", "a"):
        plain = select(with_(GUEST, pool=name), pools)
        narrowed = select(with_(GUEST, pool=name, narrow_project=project, narrow_namespace=namespace), pools)
        assert isinstance(plain, Selected) or isinstance(narrowed, NoPool)


# --- explanations ---


def test_an_unknown_pool_is_answered_with_the_pools_there_are() -> None:
    result = refused(with_(GUEST, pool="nope"), pool("office", "10.0.0.0/24"), pool("lab", "10.1.0.0/24"))
    assert result.reason == "PoolNotFound"
    assert 'there is no pool "nope" open to this cluster: name one of lab, office' in result.text


def test_without_any_pool_it_says_so() -> None:
    assert "no pool of addresses on this host" in refused(MACHINE).text


def test_each_pool_is_explained_with_what_would_change_it() -> None:
    result = refused(
        with_(MACHINE, versions=frozenset({4})),
        pool("bad", "banana"),
        pool("gone", "10.0.0.0/24", deleted="2026-01-02T00:00:00Z"),
        pool("six", "fd00::/64"),
        pool("vlan", "10.1.0.0/24", network="default/vlan7"),
        pool("closed", "10.2.0.0/24", scope=[OWN]),
    )
    assert {r.pool: r.reason for r in result.reasons} == {
        "bad": "InvalidRanges",
        "gone": "Terminating",
        "six": "NoSuchFamily",
        "vlan": "WrongNetwork",
        "closed": "OutOfScope",
    }
    assert all(": " in r.message for r in result.reasons)  # what is wrong: what to do


def test_of_very_many_pools_the_nearest_are_told() -> None:
    others = [pool(f"other{i:03}", f"10.{i}.0.0/24", network="default/vlan7") for i in range(200)]
    near = pool("the-nearest", "10.250.0.0/24", scope=[OWN])
    wrong = pool("wrong", "banana" * 40)
    result = refused(MACHINE, *others, near, wrong)
    assert len(result.reasons) == 202
    assert result.text.startswith('no pool matches the request; pool "the-nearest": ')
    assert result.text.endswith("; 152 more do not match either")
    assert len(result.text) < MAX_MESSAGE
    named = refused(with_(MACHINE, pool="nope"), *others).text
    assert named.endswith("other048, other049, 150 more, or leave it out")


# --- reading a LoadBalancer ---


def test_a_guests_load_balancer_is_read_with_its_annotations() -> None:
    lb = LoadBalancer(
        metadata=ObjectMeta(
            namespace="team",
            name="x",
            annotations={
                "loadbalancer.harvesterhci.io/cluster": "gc",
                "loadbalancer.harvesterhci.io/network": "default/vlan7",
                "loadbalancer.harvesterhci.io/project": "c-1/p-1",
                "loadbalancer.harvesterhci.io/namespace": "team",
            },
        ),
        spec=LoadBalancerSpec(workload_type="cluster", ip_pool="office", addresses=["10.0.0.9"], ip_families=["IPv4"]),
    )
    assert request_of(lb, project="c-9/p-9", limits=TenantLimits()) == Request(
        namespace="team",
        project="c-9/p-9",
        cluster="gc",
        network="default/vlan7",
        pool="office",
        narrow_project="c-1/p-1",
        narrow_namespace="team",
        versions=frozenset({4}),
        fixed=(IPv4Address("10.0.0.9"),),
        guest=True,
        tenant=TenantLimits(),
    )


def test_a_virtual_machines_load_balancer_claims_no_project_nor_cluster() -> None:
    lb = LoadBalancer(
        metadata=ObjectMeta(
            namespace="team",
            annotations={
                "loadbalancer.harvesterhci.io/cluster": "gc",
                "loadbalancer.harvesterhci.io/project": "c-1/p-1",
                "loadbalancer.harvesterhci.io/namespace": "other",
            },
        )
    )
    assert request_of(lb, project="c-1/p-1") == Request(namespace="team")


@pytest.mark.parametrize(
    ("policy", "families", "versions"),
    [
        ("SingleStack", [], set()),
        ("SingleStack", ["IPv6"], {6}),
        ("PreferDualStack", ["IPv6", "IPv4"], {6}),
        ("RequireDualStack", ["IPv4"], {4, 6}),
    ],
)
def test_only_families_that_must_be_there_are_asked_of_a_pool(
    policy: str, families: list[str], versions: set[int]
) -> None:
    lb = LoadBalancer(spec=LoadBalancerSpec(ip_family_policy=policy, ip_families=families))  # type: ignore[arg-type]
    assert request_of(lb).versions == versions


def test_a_malformed_fixed_address_is_an_error() -> None:
    with pytest.raises(ValueError, match="banana"):
        request_of(LoadBalancer(spec=LoadBalancerSpec(addresses=["banana"])))


def test_overlapping_younger_pool_is_not_chosen_for_what_the_older_hands_out() -> None:
    old = pool("old", "10.0.0.0/24=10.0.0.10-10.0.0.20", network="default/a", created="2026-01-01T00:00:00Z")
    young = pool("young", "10.0.0.0/24=10.0.0.15-10.0.0.30", network="default/a", created="2026-02-01T00:00:00Z")
    request = with_(MACHINE, network="default/a", fixed=(ip_address("10.0.0.16"),))
    assert chosen(request, young, old) == "old"
    assert chosen(with_(request, fixed=(ip_address("10.0.0.21"),)), young, old) == "young"
