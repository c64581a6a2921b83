"""Leaders that are killed, and who follows them: over the fake API server, in virtual time."""

import asyncio
import random
from itertools import pairwise

import pytest

from cloudprovider.core.errors import ConfigurationError, Unavailable
from cloudprovider.kube.fake import Call, FakeCluster, FakeKubeClient
from cloudprovider.kube.lease import HOLDER_MARK, HOLDER_NODE, LOOK_SECONDS, Timing
from cloudprovider.kube.resources import LEASES
from tests.kube.candidates import Candidate, crash, lease_of, scenario, stop


@scenario
async def test_a_leader_that_was_killed_is_followed_at_once(cluster: FakeCluster) -> None:
    dead, restarted = Candidate(cluster, "a"), Candidate(cluster, "a")
    async with dead.running() as running:
        await asyncio.wait_for(dead.leading.wait(), 1)
        await crash(cluster, dead, running)
    assert (await lease_of(cluster)).spec.holder_identity == dead.identity
    async with restarted.running():
        await asyncio.wait_for(restarted.leading.wait(), 0.1)
        lease = await lease_of(cluster)
        assert lease.spec.holder_identity == restarted.identity
        assert lease.spec.lease_transitions == restarted.elector.token == 2


@scenario
async def test_a_standby_beside_the_killed_leader_does_not_wait_for_the_expiry(cluster: FakeCluster) -> None:
    a, b = Candidate(cluster, "a"), Candidate(cluster, "b")
    async with a.running() as running:
        await asyncio.wait_for(a.leading.wait(), 1)
        async with b.running():
            await asyncio.sleep(60)
            await crash(cluster, a, running)
            await asyncio.wait_for(b.leading.wait(), 2 * 1.2 + 0.1)


@pytest.mark.parametrize(
    "mark",
    [
        "another-boot net:[1] IDENTITY",  # on another machine, or before this one was started again
        "BOOT net:[1] IDENTITY",  # in another pod
        "BOOT NAMESPACE somebody-else",  # of an earlier holder
        "",
        None,
    ],
)
def test_what_proves_nothing_is_waited_for(mark: str | None) -> None:
    @scenario
    async def waits(cluster: FakeCluster) -> None:
        a, b = Candidate(cluster, "a"), Candidate(cluster, "b")
        async with a.running() as running:
            await asyncio.wait_for(a.leading.wait(), 1)
            await crash(cluster, a, running)
        boot, namespace, identity = (await lease_of(cluster)).metadata.annotations[HOLDER_MARK].split()
        assert identity == a.identity
        said = mark and mark.replace("BOOT", boot).replace("NAMESPACE", namespace).replace("IDENTITY", identity)
        patch = {"metadata": {"annotations": {HOLDER_MARK: said}}}
        await FakeKubeClient(cluster).merge_patch(LEASES, "ns", "lease", patch)
        async with b.running():
            await asyncio.sleep(14.9)
            assert not b.leading.is_set()
            await asyncio.wait_for(b.leading.wait(), 3)

    waits()


@pytest.mark.parametrize("unheard", [True, False])
def test_a_standby_elsewhere_does_not_wait_for_the_expiry_where_the_leader_s_node_is_held_for_dead(
    unheard: bool,
) -> None:
    @scenario
    async def waits(cluster: FakeCluster) -> None:
        a, b = Candidate(cluster, "a", node="n1"), Candidate(cluster, "b", node="n2")
        async with a.running() as running:
            await asyncio.wait_for(a.leading.wait(), 1)
            patch = {"metadata": {"annotations": {HOLDER_MARK: "another-boot net:[1] a"}}}
            await FakeKubeClient(cluster).merge_patch(LEASES, "ns", "lease", patch)
            async with b.running():
                b.unheard.add("n2")  # itself, which is nonsense
                await asyncio.sleep(60)
                assert not b.leading.is_set()
                await crash(cluster, a, running)
                if unheard:
                    b.unheard.add("n1")
                    await asyncio.wait_for(b.leading.wait(), 2 * LOOK_SECONDS)
                    assert (await lease_of(cluster)).metadata.annotations[HOLDER_NODE] == "n2"
                else:
                    await asyncio.sleep(5)  # with the time of the crash, less than a Lease lasts
                    assert not b.leading.is_set()

    waits()


@scenario
async def test_a_leader_that_is_held_for_dead_and_lives_stops_within_a_renewal(cluster: FakeCluster) -> None:
    a, b = Candidate(cluster, "a", node="n1"), Candidate(cluster, "b", node="n2")
    async with a.running():
        await asyncio.wait_for(a.leading.wait(), 1)
        async with b.running():
            b.unheard.add("n1")
            await asyncio.wait_for(b.leading.wait(), 3)
            await asyncio.wait_for(a.stopped.wait(), Timing().retry_period + 0.1)
            await asyncio.sleep(60)
            assert b.leading.is_set()
            assert not a.leading.is_set()


@scenario
async def test_an_identity_of_two_live_processes_is_refused(cluster: FakeCluster) -> None:
    a, twin = Candidate(cluster, "a"), Candidate(cluster, "a")
    twin.elector._identity = a.identity
    async with a.running():
        await asyncio.wait_for(a.leading.wait(), 1)
        with pytest.raises(ConfigurationError, match="identity of its own"):
            await asyncio.wait_for(twin.elector.run_while_leader(twin.work), 60)
        await asyncio.sleep(60)
        assert a.leading.is_set()
    assert (await lease_of(cluster)).spec.lease_transitions == 1


@scenario
async def test_copies_that_are_killed_and_restarted_at_random_never_lead_together(cluster: FakeCluster) -> None:
    rng = random.Random(11)

    async def after(_: Call) -> None:
        await asyncio.sleep(rng.choice([0.0, 0.1, 0.5]))
        if rng.random() < 0.1:
            raise Unavailable("the answer was lost")

    everyone: list[Candidate] = []
    running: dict[Candidate, asyncio.Task[None]] = {}
    taken_over = 0
    for _ in range(400):
        while len(running) < 3:
            candidate = Candidate(cluster, f"{len(everyone)}")
            everyone.append(candidate)
            running[candidate] = asyncio.create_task(candidate.elector.run_while_leader(candidate.work))
        cluster.after = after
        for _ in range(rng.randrange(100)):
            await asyncio.sleep(0.1)
            assert sum(c.leading.is_set() for c in everyone) <= 1
        victim = rng.choice(list(running))
        taken_over += victim.leading.is_set()
        await crash(cluster, victim, running.pop(victim))
    for task in running.values():
        await stop(task)
    terms = sorted((began, ended, token) for c in everyone for token, began, ended in c.terms)
    assert taken_over > 50
    assert [t[2] for t in terms] == sorted({t[2] for t in terms})
    assert all(ended <= began for (_, ended, _), (began, _, _) in pairwise(terms))
