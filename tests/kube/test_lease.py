"""The elector over the fake API server, in virtual time."""

import asyncio
import random

import pytest

from cloudprovider.core.errors import Unavailable
from cloudprovider.kube.fake import Call, FakeCluster, FakeKubeClient
from cloudprovider.kube.lease import Timing
from cloudprovider.kube.resources import LEASES
from tests.kube.candidates import Candidate, freeze, lease_of, now, scenario, stop


@scenario
async def test_one_leads_and_hands_over_on_stop(cluster: FakeCluster) -> None:
    a, b = Candidate(cluster, "a"), Candidate(cluster, "b")
    async with a.running() as running_a:
        await asyncio.wait_for(a.leading.wait(), 1)
        async with b.running():
            await asyncio.sleep(3600)
            assert a.leading.is_set()
            assert not b.leading.is_set()
            stopped = now()
            await stop(running_a)
            assert (await lease_of(cluster)).spec.holder_identity == ""
            await asyncio.wait_for(b.leading.wait(), 3)
            assert now() - stopped < 3
    assert [term[0] for term in a.terms + b.terms] == [1, 2]
    assert a.terms[0][2] <= b.terms[0][1]


@scenario
async def test_a_frozen_api_server_stops_work_before_anybody_else_begins(cluster: FakeCluster) -> None:
    a, b = Candidate(cluster, "a", stop_seconds=2), Candidate(cluster, "b")
    async with a.running(), b.running():
        await asyncio.wait_for(a.leading.wait(), 1)
        await asyncio.sleep(60)
        frozen = now()
        freeze(cluster, "a")
        await asyncio.wait_for(b.leading.wait(), 60)
        assert not a.leading.is_set()
        ((_, _, ended),) = a.terms
        assert ended <= b_began(b)
        assert ended - frozen <= Timing().renew_deadline + 2 + 0.1
        assert b_began(b) - frozen <= 15 + 2 * 2.4
    assert b.terms[0][0] > a.terms[0][0]


def b_began(candidate: Candidate) -> float:
    assert candidate.leading.is_set()
    return now()


@scenario
async def test_the_lost_leader_contends_again(cluster: FakeCluster) -> None:
    a = Candidate(cluster, "a")
    async with a.running():
        await asyncio.wait_for(a.leading.wait(), 1)
        thaw = freeze(cluster, "a")
        await asyncio.sleep(13)
        assert not a.leading.is_set()
        assert a.elector.token is None
        thaw()
        await asyncio.wait_for(a.leading.wait(), 10)
    assert [term[0] for term in a.terms] == [1, 2]


@scenario
async def test_a_short_outage_costs_nothing(cluster: FakeCluster) -> None:
    a, b = Candidate(cluster, "a"), Candidate(cluster, "b")
    async with a.running(), b.running():
        await asyncio.wait_for(a.leading.wait(), 1)
        for _ in range(20):
            thaw = freeze(cluster, "a", "b")
            await asyncio.sleep(6)
            thaw()
            await asyncio.sleep(4)
        assert a.leading.is_set()
        assert not b.terms
    assert [term[0] for term in a.terms] == [1]


@scenario
async def test_an_api_server_that_takes_five_seconds_for_each_request_costs_nothing(cluster: FakeCluster) -> None:
    async def slow(_: Call) -> None:
        await asyncio.sleep(5)

    a, b = Candidate(cluster, "a"), Candidate(cluster, "b")
    async with a.running(), b.running():
        await asyncio.wait_for(a.leading.wait(), 1)
        cluster.before = slow
        await asyncio.sleep(60)
        cluster.before = None
        await asyncio.sleep(60)
        assert a.leading.is_set()
        assert not b.terms
    assert [term[0] for term in a.terms] == [1]


@scenario
async def test_lost_answers_are_not_a_lost_lease(cluster: FakeCluster) -> None:
    a = Candidate(cluster, "a")
    async with a.running():
        await asyncio.wait_for(a.leading.wait(), 1)
        thaw = freeze(cluster, "a", answers_only=True)
        await asyncio.sleep(5)
        thaw()
        await asyncio.sleep(60)
        assert a.leading.is_set()
        assert (await lease_of(cluster)).spec.lease_transitions == 1


@scenario
async def test_a_lost_answer_to_the_first_write(cluster: FakeCluster) -> None:
    a = Candidate(cluster, "a")
    thaw = freeze(cluster, "a", answers_only=True)
    async with a.running():
        await asyncio.sleep(Timing().request_timeout + 1)
        thaw()
        await asyncio.wait_for(a.leading.wait(), 10)
    (term,) = a.terms
    assert term[0] == 2


@scenario
async def test_a_usurper_ends_the_term_at_the_next_renewal(cluster: FakeCluster) -> None:
    a = Candidate(cluster, "a")
    async with a.running():
        await asyncio.wait_for(a.leading.wait(), 1)
        usurped = {"spec": {"holderIdentity": "operator", "leaseTransitions": 7}}
        await FakeKubeClient(cluster).merge_patch(LEASES, "ns", "lease", usurped)
        began = now()
        await asyncio.wait_for(a.stopped.wait(), 2.2)
        await asyncio.wait_for(a.leading.wait(), 30)
        assert now() - began >= 15
        assert a.elector.token == 8


@scenario
async def test_a_deleted_lease_ends_the_term(cluster: FakeCluster) -> None:
    a = Candidate(cluster, "a")
    async with a.running():
        await asyncio.wait_for(a.leading.wait(), 1)
        await FakeKubeClient(cluster).delete(LEASES, "ns", "lease")
        await asyncio.sleep(10)
        assert len(a.terms) == 1
        assert a.leading.is_set()


@scenario
async def test_a_label_on_the_lease_is_no_loss_and_stays(cluster: FakeCluster) -> None:
    a = Candidate(cluster, "a")
    async with a.running():
        await asyncio.wait_for(a.leading.wait(), 1)
        await FakeKubeClient(cluster).merge_patch(LEASES, "ns", "lease", {"metadata": {"labels": {"a": "b"}}})
        await asyncio.sleep(60)
        assert a.leading.is_set()
        assert not a.terms
        assert (await lease_of(cluster)).metadata.labels == {"a": "b"}


@scenario
async def test_work_that_ends_releases_and_returns(cluster: FakeCluster) -> None:
    async def done(_: int) -> None:
        await asyncio.sleep(1)

    async def broken(_: int) -> None:
        raise ValueError("a bug")

    elector = Candidate(cluster, "a").elector
    await elector.run_while_leader(done)
    assert (await lease_of(cluster)).spec.holder_identity == ""
    with pytest.raises(ValueError, match="a bug"):
        await elector.run_while_leader(broken)
    lease = await lease_of(cluster)
    assert (lease.spec.holder_identity, lease.spec.lease_transitions) == ("", 2)


@scenario
async def test_the_lease_is_renewed_until_slow_work_has_ended(cluster: FakeCluster) -> None:
    a, b = Candidate(cluster, "a", stop_seconds=40), Candidate(cluster, "b")
    async with b.running():
        async with a.running():
            await asyncio.sleep(30)
            assert a.leading.is_set() != b.leading.is_set()
        if a.terms:
            await asyncio.wait_for(b.leading.wait(), 10)
            assert a.terms[0][2] <= now()


@scenario
async def test_only_one_of_many_leads(cluster: FakeCluster) -> None:
    """Ten candidates, requests slow and failing at random: at no time do two lead, and tokens only grow."""
    rng = random.Random(7)

    async def before(_: Call) -> None:
        await asyncio.sleep(rng.choice([0.0, 0.1, 0.5, 5.0]))
        if rng.random() < 0.2:
            raise Unavailable("busy")

    async def after(_: Call) -> None:
        if rng.random() < 0.2:
            raise Unavailable("the answer was lost")

    cluster.before, cluster.after = before, after
    candidates = [Candidate(cluster, str(n), stop_seconds=2) for n in range(10)]
    tasks = [asyncio.create_task(c.elector.run_while_leader(c.work)) for c in candidates]
    for _ in range(20000):
        await asyncio.sleep(0.1)
        assert sum(c.leading.is_set() for c in candidates) <= 1
    for task in tasks:
        await stop(task)
    terms = sorted((began, ended, token) for c in candidates for token, began, ended in c.terms)
    assert len(terms) > 5
    assert [t[2] for t in terms] == sorted({t[2] for t in terms})


def test_timing_is_checked() -> None:
    with pytest.raises(ValueError, match="request_timeout"):
        Timing(request_timeout=13)
