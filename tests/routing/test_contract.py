"""What every speaker does, the fake as well as bgpd."""

import contextlib
from collections.abc import AsyncIterator, Mapping

import pytest

from cloudprovider.core.bgp import Attributes
from tests.dataplane.lan import until
from tests.routing.world import ASN, HOST, HOST6, LIMIT, ROUTER_ASN, Router, Running, Said, World, neighbor, speech

PLAIN = Attributes()
MARKED = Attributes(communities=("64512:100", "no-export"), large_communities=("1:2:3",), local_preference=200)
ONE, TWO, SIX = "10.50.0.1", "10.50.0.2", "fd50::1"

pytestmark = pytest.mark.timeout(90)


async def heard(router: Router, paths: Mapping[str, Said], limit: float = LIMIT) -> None:
    """Wait until a router has heard just this."""
    await until(lambda: dict(router.paths()) == dict(paths), f"{router.address} to hear {sorted(paths)}", limit=limit)


def path(attributes: Attributes = PLAIN, *, preference: int = 100, graceful: bool = False, six: bool = False) -> Said:
    return Said(
        HOST6 if six else HOST,
        frozenset(attributes.communities),
        frozenset(attributes.large_communities),
        preference,
        graceful,
    )


@contextlib.asynccontextmanager
async def spoken(world: World, router: Router, *, asn: int = ROUTER_ASN) -> AsyncIterator[Running]:
    """One router that has heard of one address."""
    router.know(HOST, ASN)
    speaker = world.speaker()
    speaker.speak(speech(neighbor("tor", router.address, asn), routes={ONE: {"tor": PLAIN}}))
    async with Running(speaker) as running:
        await running.until("tor", "Established")
        await heard(router, {ONE: path()})
        yield running


async def test_addresses_are_said_with_all_that_is_said_of_them(world: World) -> None:
    router = world.router("10.99.0.11", ROUTER_ASN)
    async with spoken(world, router) as running:
        said = {ONE: {"tor": MARKED}, TWO: {"tor": PLAIN}, SIX: {"tor": PLAIN}}
        running.speaker.speak(speech(neighbor("tor", router.address), routes=said))
        await heard(router, {ONE: path(MARKED), TWO: path()})
        await until(lambda: running.speaker.sessions["tor"].advertised == 2, "a count of them")
        session = running.speaker.sessions["tor"]
        assert (session.state, session.drops, session.error) == ("Established", 0, "")


async def test_only_what_differs_changes_and_no_session_is_dropped(world: World) -> None:
    router, other = world.router("10.99.0.11", ROUTER_ASN), world.router("10.99.0.12", 64999)
    other.know(HOST, ASN, "secret")
    async with spoken(world, router) as running:
        tor, new = neighbor("tor", router.address), neighbor("new", other.address, 64999, "secret")
        running.speaker.speak(speech(tor, new, routes={ONE: {"tor": PLAIN, "new": MARKED}, TWO: {"new": PLAIN}}))
        await heard(other, {ONE: path(MARKED), TWO: path()})
        await heard(router, {ONE: path()})
        running.speaker.speak(speech(tor, routes={TWO: {"tor": PLAIN}}))
        await heard(router, {TWO: path()})
        await heard(other, {})
        assert {name: s.drops for name, s in running.speaker.sessions.items()} == {"tor": 0}


async def test_routers_of_the_same_as_hear_of_a_preference(world: World) -> None:
    router = world.router("10.99.0.11", ASN)
    async with spoken(world, router, asn=ASN) as running:
        running.speaker.speak(speech(neighbor("tor", router.address, ASN), routes={ONE: {"tor": MARKED}}))
        await heard(router, {ONE: path(MARKED, preference=200)})


async def test_by_ipv6(world: World) -> None:
    router = world.router("fd99::11", ROUTER_ASN)
    router.know(HOST6, ASN, "secret")
    speaker = world.speaker()
    speaker.speak(
        speech(
            neighbor("tor", "fd99::11", password="secret"),  # noqa: S106 - none
            routes={ONE: {"tor": PLAIN}, SIX: {"tor": MARKED}},
        )
    )
    async with Running(speaker) as running:
        await running.until("tor", "Established")
        await heard(router, {SIX: path(MARKED, six=True)})


async def test_another_as_number_than_the_router_s_is_told(world: World) -> None:
    router = world.router("10.99.0.11", ROUTER_ASN)
    router.know(HOST, ASN)
    speaker = world.speaker()
    async with Running(speaker) as running:
        speaker.speak(speech(neighbor("tor", router.address, 65000), routes={ONE: {"tor": PLAIN}}))
        told = "10.99.0.11 is not of AS 65000: correct spec.peerASN."
        await until(lambda: "tor" in speaker.sessions and speaker.sessions["tor"].error == told, told, limit=LIMIT)
        assert speaker.sessions["tor"].state == "Connecting"
        assert router.paths() == {}
        speaker.speak(speech(neighbor("tor", router.address), routes={ONE: {"tor": PLAIN}}))
        await running.until("tor", "Established")


async def test_another_as_number_than_the_router_has_for_us_is_told(world: World) -> None:
    router = world.router("10.99.0.11", ROUTER_ASN)
    router.know(HOST, 65001)
    speaker = world.speaker()
    speaker.speak(speech(neighbor("tor", router.address), routes={ONE: {"tor": PLAIN}}))
    async with Running(speaker):
        told = (
            "10.99.0.11 does not take this host for AS 64512: correct spec.myASN, or the AS number that the router has"
            " for this host."
        )
        await until(lambda: "tor" in speaker.sessions and speaker.sessions["tor"].error == told, told, limit=LIMIT)


@pytest.mark.parametrize(("ours", "its"), [("wrong", "secret"), ("", "secret"), ("secret", "")])
async def test_another_password_looks_like_silence_and_is_told(world: World, ours: str, its: str) -> None:
    router = world.router("10.99.0.11", ROUTER_ASN)
    router.know(HOST, ASN, its)
    speaker = world.speaker()
    speaker.speak(speech(neighbor("tor", router.address, password=ours), routes={ONE: {"tor": PLAIN}}))
    async with Running(speaker) as running:
        await running.until("tor", "Connecting")
        which = "with the same password" if ours else "without a password"
        told = (
            "10.99.0.11 does not answer on TCP port 179: see that it is up, and speaks BGP to 10.99.0.2,"
            f" {which} (with another one, it seems silent)."
        )
        assert speaker.sessions["tor"].error == told
        speaker.speak(speech(neighbor("tor", router.address, password=its), routes={ONE: {"tor": PLAIN}}))
        await running.until("tor", "Established")


async def test_a_router_that_dies_is_noticed_and_comes_back(world: World) -> None:
    router = world.router("10.99.0.11", ROUTER_ASN)
    async with spoken(world, router) as running:
        router.off()
        await running.until("tor", "Connecting")
        assert running.speaker.sessions["tor"].error.startswith("10.99.0.11 does not answer on TCP port 179")
        assert running.speaker.sessions["tor"].advertised == 0
        router.on()
        await running.until("tor", "Established")
        await heard(router, {ONE: path()})
        assert running.speaker.sessions["tor"].drops == 1


async def test_a_router_that_drops_the_session_again_and_again_is_flapping(world: World) -> None:
    router = world.router("10.99.0.11", ROUTER_ASN)
    async with spoken(world, router) as running:
        for count in range(1, 4):
            await until(lambda: dict(router.paths()) == {ONE: path()}, "the session to be up again", limit=LIMIT)
            router.drop(HOST, "tor")
            await until(lambda n=count: running.speaker.sessions["tor"].drops == n, "a drop", limit=LIMIT)  # type: ignore[misc]
        await running.until("tor", "Flapping")
        told = running.speaker.sessions["tor"].error
        assert told.startswith(
            "The session with 10.99.0.11 comes up and ends again and again; last, the router ended it:"
        )
        await heard(router, {ONE: path()})
        changes, session = running.changes, running.speaker.sessions["tor"]
        router.drop(HOST, "tor")
        await until(lambda: running.speaker.sessions["tor"].drops == 4, "one more", limit=LIMIT)
        assert running.changes - changes <= 4, "nobody is told more often than it looks"
        assert (session.state, session.since) == ("Flapping", running.speaker.sessions["tor"].since)


async def test_a_router_that_is_known_to_be_gone_is_left_at_once(world: World) -> None:
    router = world.router("10.99.0.11", ROUTER_ASN)
    async with spoken(world, router) as running:
        running.speaker.lost("tor")
        running.speaker.lost("stranger")
        await until(lambda: running.speaker.sessions["tor"].drops == 1, "the end of the session")
        await running.until("tor", "Established")
        await heard(router, {ONE: path()})


async def test_a_host_that_is_about_to_go_says_so(world: World) -> None:
    router = world.router("10.99.0.11", ROUTER_ASN)
    async with spoken(world, router) as running:
        tor = neighbor("tor", router.address)
        running.speaker.speak(speech(tor, routes={ONE: {"tor": PLAIN}}, graceful=True))
        await heard(router, {ONE: path(preference=0, graceful=True)})
        running.speaker.speak(speech(tor, routes={}, graceful=True))
        await heard(router, {})
        running.speaker.speak(speech(tor, routes={ONE: {"tor": PLAIN}}))
        await heard(router, {ONE: path()})
        assert running.speaker.sessions["tor"].drops == 0


async def test_at_its_end_nothing_is_said_any_more(world: World) -> None:
    router = world.router("10.99.0.11", ROUTER_ASN)
    async with spoken(world, router) as running:
        await running.stop()
        await heard(router, {}, limit=5)
        assert running.speaker.sessions == {}


async def test_with_nobody_to_speak_to_nothing_is_said(world: World) -> None:
    router = world.router("10.99.0.11", ROUTER_ASN)
    async with spoken(world, router) as running:
        running.speaker.speak(None)
        await heard(router, {})
        await until(lambda: running.speaker.sessions == {}, "nobody")
        running.speaker.speak(speech(neighbor("tor", router.address), routes={TWO: {"tor": PLAIN}}))
        await heard(router, {TWO: path()})
