"""What a host says by BGP, to whom: plain data, of which FRR's configuration is made (:mod:`.bgpconfig`).

Sources: RFC 4271 (BGP-4), RFC 1997 and 8092 (communities), RFC 8326 (graceful shutdown), RFC 5880 (BFD).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from cloudprovider.core.plan import IPAddress

DEFAULT_PORT = 179
DEFAULT_PREFERENCE = 100
"""LOCAL_PREF of a route of which nothing else is said."""


@dataclass(frozen=True, kw_only=True)
class Watch:
    """How fast a router's death is to be noticed by BFD. ``interval``: milliseconds."""

    interval: int
    multiplier: int


@dataclass(frozen=True, kw_only=True)
class Neighbor:
    """A router. ``name``: its BGPPeer's; ``source``: our address that the session is from; ``hold``, ``keepalive``:
    seconds."""

    name: str
    address: IPAddress
    asn: int
    source: IPAddress
    port: int = DEFAULT_PORT
    hold: int = 90
    keepalive: int = 30
    password: str = field(default="", repr=False)
    multi_hop: bool = False
    watch: Watch | None = None


@dataclass(frozen=True, kw_only=True)
class Attributes:
    """What is said of an address beside itself; communities in order, as FRR writes them."""

    communities: tuple[str, ...] = ()
    large_communities: tuple[str, ...] = ()
    local_preference: int = DEFAULT_PREFERENCE


Announcement = tuple[tuple[str, Attributes], ...]
"""To whom an address is said, and how: (neighbor's name, attributes), by name. Many addresses share one. A neighbor
hears addresses of the IP version of its own alone."""


@dataclass(frozen=True, kw_only=True)
class Speech:
    """All that a host says on one network. ``next_hops``: its own addresses there, by IP version. ``graceful``: it is
    about to say nothing any more (RFC 8326)."""

    asn: int
    router_id: str
    next_hops: Mapping[int, IPAddress]
    neighbors: tuple[Neighbor, ...]
    routes: Mapping[IPAddress, Announcement]
    graceful: bool = False
