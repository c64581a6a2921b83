"""VIPs on a namespace's link: probed, brought up, announced, defended. Meets ``dataplane.api.Announcer``.

Once an address is on the link (/32 or /128), the kernel answers ARP or Neighbor Solicitations for it, and for IPv6
joins its solicited-node group. Clients that knew another MAC follow an announcement in 2 to 4 ms, and without one
after several seconds. Duplicates are looked for here and not by the kernel, whose own detection (RFC 4862) takes a
second, tells nobody who has the address, and leaves it dead on the link.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, IPv6Network
from itertools import islice
from typing import Final

from cloudprovider.core.errors import DataPlaneError
from cloudprovider.core.plan import IPAddress
from cloudprovider.dataplane.api import Claim
from cloudprovider.dataplane.heard import Heard
from cloudprovider.dataplane.neighbours import Neighbours, check_announceable
from cloudprovider.dataplane.rtnetlink import IPInterface, Link, RouteSocket, host_interface, vips

_logger: Final = logging.getLogger(__name__)

_IPV4_AT_ONCE: Final = 64
_IPV6_AT_ONCE: Final = 8
"""How many addresses one rtnetlink request carries: the event loop goes on between requests, which take up to 10 ms.
With every IPv6 address the kernel goes through the multicast groups of all that are there (``ipv6_mc_up``): one costs
0.3 ms beside 1,000, 3 ms beside 5,000."""
_REPEAT_AFTER: Final = 2.0
"""Seconds until an announcement is repeated, for clients that lost the first (RFC 5227: ANNOUNCE_INTERVAL; RFC 4861
section 7.2.6 asks for at least a second)."""


@dataclass(frozen=True)
class Timing:
    """How a conflict is looked for, in seconds.

    Shorter than RFC 5227 section 1.1 (three probes within 1 to 2 s, then 2 s of listening) and RFC 4862 section 5.1
    (one, then a second), because an address comes from a pool that is ours to hand out: a conflict is a mistake in the
    configuration, not the ordinary case that the RFCs are made for, and a host answers within milliseconds. Detection
    goes on for as long as the address is held, so one that was late to answer is still reported.
    """

    probes: int = 3
    between: float = 0.05
    listen: float = 0.1
    hurried_between: float = 0.006
    hurried_listen: float = 0.018
    """Where who had the address is known to be silent, and its clients wait. A kernel that lives answers for its
    addresses in less than a millisecond, whatever its programs do; who answers too late hears the announcement."""
    defend: float = 10.0
    """How often an address is defended and its conflict reported at most (RFC 5227: DEFEND_INTERVAL)."""
    doubt: float = 1.0
    """How long to wait where it is not known yet whether somebody may have an address of ours."""


class KernelAnnouncer:
    """The VIPs of one link. Made in a running event loop; ``own`` are the namespace's own addresses there, ``hosts``
    those of the host that a probe can't find, with their MAC."""

    def __init__(
        self,
        link: Link,
        own: Collection[IPInterface],
        hosts: Mapping[IPAddress, str],
        *,
        route: RouteSocket,
        neighbours: Neighbours,
        timing: Timing,
    ) -> None:
        self._link = link
        self._own = own
        self._hosts = hosts
        self._route = route
        self._neighbours = neighbours
        self._timing = timing
        self._held: set[IPAddress] = set()
        self._probes: list[dict[IPAddress, str]] = []
        """What is being asked: addresses, and the MAC that was heard to have each ("" so far nobody)."""
        self._defended: dict[IPAddress, float] = {}
        self._doubts: dict[tuple[IPAddress, str], asyncio.TimerHandle] = {}
        """Who claims what, where it is not known yet whether they may."""
        self._met: set[IPv6Network] = set()
        self._callback: Callable[[IPAddress, str], None] | None = None
        self._may_have: Callable[[IPAddress, str], bool | None] = lambda _address, _mac: False
        self._repeats: set[asyncio.Task[None]] = set()
        self._loop = asyncio.get_running_loop()
        neighbours.listen(self._hear)

    async def probe(self, addresses: Sequence[IPAddress]) -> list[Claim]:
        """See :class:`~cloudprovider.dataplane.api.Announcer`."""
        return await self._probe(addresses, self._timing.between, self._timing.listen)

    async def claim(self, addresses: Sequence[IPAddress], *, hurried: bool = False) -> list[Claim]:
        """See :class:`~cloudprovider.dataplane.api.Announcer`."""
        timing = self._timing
        between, listen = (
            (timing.hurried_between, timing.hurried_listen) if hurried else (timing.between, timing.listen)
        )
        claims = await self._probe(addresses, between, listen)
        free = dict.fromkeys(claim.address for claim in claims if not claim.conflict)
        await self._bring_up([address for address in free if address not in self._held])
        return claims

    async def take(self, addresses: Sequence[IPAddress]) -> None:
        """See :class:`~cloudprovider.dataplane.api.Announcer`."""
        check_announceable(addresses, ipv6=self._neighbours.ipv6)
        await self._bring_up([address for address in dict.fromkeys(addresses) if address not in self._held])

    async def withdraw(self, addresses: Iterable[IPAddress]) -> None:
        """See :class:`~cloudprovider.dataplane.api.Announcer`."""
        gone = [address for address in addresses if isinstance(address, IPv4Address) or self._neighbours.ipv6]
        for part in _parts(gone):
            self._take_down(part)
            await asyncio.sleep(0)

    async def held(self) -> frozenset[IPAddress]:
        """See :class:`~cloudprovider.dataplane.api.Announcer`."""
        found = vips(self._route.addresses(self._link), self._own)
        self._held = set(found)
        self._meet_neighbours(found)
        return found

    def on_conflict(self, callback: Callable[[IPAddress, str], None]) -> None:
        """See :class:`~cloudprovider.dataplane.api.Announcer`."""
        self._callback = callback

    def yield_to(self, may_have: Callable[[IPAddress, str], bool | None]) -> None:
        """See :class:`~cloudprovider.dataplane.api.Announcer`."""
        self._may_have = may_have

    async def resume(self) -> None:
        """The link has come back: bring up again what it lost, and announce all that is held. Raises DataPlaneError."""
        there = vips(self._route.addresses(self._link), self._own)
        self._met.clear()
        held = list(self._held)
        for part in _parts(held):
            still = [address for address in part if address in self._held]
            missing = [host_interface(address) for address in still if address not in there]
            self._route.add_addresses(self._link, missing)
            self._meet_neighbours(still)
            await self._neighbours.announce(still)
            await asyncio.sleep(0)
        self._repeat(held)

    async def close(self) -> None:
        """Let go of the sockets; addresses stay."""
        for timer in self._doubts.values():
            timer.cancel()
        for task in self._repeats:
            task.cancel()
        await asyncio.gather(*self._repeats, return_exceptions=True)
        self._neighbours.close()
        self._route.close()

    async def _probe(self, addresses: Sequence[IPAddress], between: float, listen: float) -> list[Claim]:
        check_announceable(addresses, ipv6=self._neighbours.ipv6)
        conflicts = await self._ask([a for a in dict.fromkeys(addresses) if a not in self._held], between, listen)
        return [Claim(address=address, conflict=conflicts.get(address, "")) for address in addresses]

    async def _ask(self, addresses: Sequence[IPAddress], between: float, listen: float) -> dict[IPAddress, str]:
        """Ask for all addresses at once and return the MAC that has each, "" for nobody."""
        found = {address: self._hosts.get(address, "") for address in addresses}
        if not addresses:
            return found
        self._probes.append(found)
        try:
            for turn in range(self._timing.probes):
                if turn:
                    await asyncio.sleep(between)
                await self._neighbours.probe([address for address in addresses if not found[address]])
            await asyncio.sleep(listen)
        finally:
            self._probes = [probe for probe in self._probes if probe is not found]
        return found

    async def _bring_up(self, addresses: Sequence[IPAddress]) -> None:
        begun: list[IPAddress] = []
        for part in _parts(addresses):
            begun += part
            try:
                self._route.add_addresses(self._link, [host_interface(address) for address in part])
                self._held.update(part)
                self._meet_neighbours(part)
                await self._neighbours.announce(part)
            except DataPlaneError:  # a refused claim changes nothing
                with contextlib.suppress(DataPlaneError):
                    self._take_down(begun)
                raise
            await asyncio.sleep(0)
        self._repeat(addresses)

    def _repeat(self, addresses: Sequence[IPAddress]) -> None:
        if addresses:
            task = self._loop.create_task(self._announce_again(addresses))
            self._repeats.add(task)
            task.add_done_callback(self._repeats.discard)

    def _meet_neighbours(self, addresses: Iterable[IPAddress]) -> None:
        """Answer the clients of each IPv6 address's own /64, which the namespace has no other way to. Not all the
        world: whoever is answered as a neighbour takes a place in the kernel's one neighbour table."""
        networks = {IPv6Network((a, 64), strict=False) for a in addresses if isinstance(a, IPv6Address)}
        for network in networks - self._met:
            self._route.set_neighbours(self._link, network)
            self._met.add(network)

    def _take_down(self, addresses: Sequence[IPAddress]) -> None:
        self._route.delete_addresses(self._link, [host_interface(address) for address in addresses])
        self._held.difference_update(addresses)
        for address in addresses:
            self._defended.pop(address, None)

    async def _announce_again(self, addresses: Sequence[IPAddress]) -> None:
        await asyncio.sleep(_REPEAT_AFTER)
        try:
            await self._neighbours.announce(address for address in addresses if address in self._held)
        except DataPlaneError as error:
            _logger.warning("An announcement was not repeated.", extra={"error": str(error)})

    def _hear(self, heard: Heard) -> None:
        for probe in self._probes:
            if heard.sender in probe:
                probe[heard.sender] = heard.mac
            elif heard.is_probe and heard.target in probe:  # somebody else is about to take it
                probe[heard.target] = heard.mac
        if heard.sender in self._held and (heard.sender, heard.mac) not in self._doubts:
            self._judge(heard.sender, heard.mac)

    def _judge(self, address: IPAddress, mac: str) -> None:
        """Give an address up to who claims it, or defend it."""
        may_have = self._may_have(address, mac)
        if may_have:
            try:
                self._take_down([address])
            except DataPlaneError as error:
                _logger.warning("An address was not given up.", extra={"address": str(address), "error": str(error)})
        elif may_have is None and (address, mac) not in self._doubts:
            self._doubts[address, mac] = self._loop.call_later(self._timing.doubt, self._decide, address, mac)
        else:
            self._defend(address, mac)

    def _decide(self, address: IPAddress, mac: str) -> None:
        if address in self._held:
            self._judge(address, mac)
        del self._doubts[address, mac]

    def _defend(self, address: IPAddress, mac: str) -> None:
        now = self._loop.time()
        if now - self._defended.get(address, -self._timing.defend) < self._timing.defend:
            return
        self._defended[address] = now
        try:
            self._neighbours.insist(address)
        except DataPlaneError as error:
            _logger.warning("An address was not defended.", extra={"address": str(address), "error": str(error)})
        if self._callback is not None:
            self._callback(address, mac)


def _parts(addresses: Sequence[IPAddress]) -> Iterator[list[IPAddress]]:
    """What may go into one request each."""
    for family, size in ((IPv4Address, _IPV4_AT_ONCE), (IPv6Address, _IPV6_AT_ONCE)):
        remaining = iter([address for address in addresses if isinstance(address, family)])
        while part := list(islice(remaining, size)):
            yield part
