"""The static rules of mode ``nat``, alike for IPv4 (table ``ip``) and IPv6 (``ip6``). How a packet goes::

    classify   every packet but answers: (address, protocol, port) → mark: the group's number and flags; counts by
               listener
    translate  a flow's first packet: source ranges, then (mark) → the chain of the group's table size and hash; counts
               flows by listener; of one that began on the host before this, it goes there
    by_*_N     (group, Maglev slot) → node, (address, protocol, port) → port on it
    forward    nothing but what was translated; counts by node; of the rest, refuses what is for a listener
    source     answers come back here: the namespace's own address is what nodes see
    output     tells nobody of a shorter way (IPv6)
    input      answers, ping, BFD; the last of a flow that began on the host before; of what is left:
    refuse     quickly and with a bounded rate: RST, ICMP

The choice of a node is two-stage, so that a listener costs two elements however many nodes there are, and a group's
table stands once however many Services share it.
"""

from functools import cache
from typing import Final

from cloudprovider.core.maglev import SIZES
from cloudprovider.core.plan import IPAddress
from cloudprovider.dataplane import marks, ruleset
from cloudprovider.dataplane.nftables import SetName
from cloudprovider.dataplane.ruleset import NAT_FAMILY, SYNTAX, StaticTable, Version
from cloudprovider.dataplane.standing import Standing

RESETS_PER_SECOND: Final = 1000
"""How many RST and ICMP errors a namespace sends at most; beyond, it is silent."""
BFD_PORT: Final = 3784
"""Where hosts tell each other that they are there (RFC 5881 section 4), by packets of a hop limit of 255: from this
network alone (section 5)."""
BFD_PER_SECOND: Final = 2000
"""How many of those come in at most, whoever sends them: what they are for runs before all else on the host. Ten hosts
send 120."""

_NEIGHBOUR_DISCOVERY: Final = (
    # Without it nobody finds the VIP; a switch that snoops would not deliver solicitations without the last.
    "icmpv6 type { nd-router-solicit, nd-router-advert, nd-redirect } accept",  # and ignored: see sysctls
    "icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert, mld-listener-query } accept",
)


@cache
def listeners(version: Version) -> SetName:
    """The map of listener to mark, which counts."""
    return SetName(NAT_FAMILY[version], "listeners")


@cache
def ports(version: Version) -> SetName:
    """The map of listener to the port on the nodes."""
    return SetName(NAT_FAMILY[version], "ports")


@cache
def tables(version: Version) -> SetName:
    """The map of mark to the chain that chooses."""
    return SetName(NAT_FAMILY[version], "tables")


@cache
def slots(version: Version, size: int) -> SetName:
    """The map of (group, slot) to node for tables of ``size`` slots."""
    return SetName(NAT_FAMILY[version], f"slots_{size}")


@cache
def sources(version: Version, length: int) -> SetName:
    """The set of (listener, network) for networks of that prefix length."""
    return SetName(NAT_FAMILY[version], f"sources_{length}")


@cache
def predecessors(version: Version) -> SetName:
    """The map of listener to the host that had its address before."""
    return SetName(NAT_FAMILY[version], "predecessors")


@cache
def quoted(version: Version) -> SetName:
    """The map of listener, as ICMP errors quote it, to the host that had its address before."""
    return SetName(NAT_FAMILY[version], "quoted")


@cache
def backends(version: Version) -> SetName:
    """The set of all nodes, which counts what is sent on to each."""
    return SetName(NAT_FAMILY[version], "backends")


@cache
def begun(version: Version) -> SetName:
    """The set of all nodes, which counts the flows that begin."""
    return SetName(NAT_FAMILY[version], "begun")


@cache
def connections(version: Version) -> SetName:
    """The set of all listeners that have nodes, which counts the flows that begin."""
    return SetName(NAT_FAMILY[version], "connections")


def chain(size: int, *, by_client: bool) -> str:
    """The chain that chooses from tables of ``size`` slots."""
    return f"by_{'client' if by_client else 'flow'}_{size}"


def table(version: Version, standing: Standing) -> StaticTable:
    """The whole table of one IP version."""
    ip, address, bits = SYNTAX[version]
    listener = ruleset.listener_type(version)
    return StaticTable(
        NAT_FAMILY[version],
        [
            f"map listeners {{ type {listener} : mark; counter; }}",
            f"map ports {{ type {listener} : inet_service; }}",
            "map tables { type mark : verdict; }",
            *(f"map slots_{n} {{ typeof meta mark . numgen random mod {n} : {ip} daddr; }}" for n in SIZES),
            *(f"set sources_{n} {{ type {listener} . {address}; }}" for n in range(bits + 1)),
            f"map predecessors {{ type {listener} : {address}; }}",
            f"map quoted {{ typeof {ruleset.QUOTED_LISTENER[version]} : {ip} daddr; }}",
            f"set backends {{ type {address}; counter; }}",
            f"set begun {{ type {address}; counter; }}",
            f"set connections {{ type {listener}; counter; }}",
        ],
        _chains(version, standing),
    )


def _chains(version: Version, standing: Standing) -> dict[str, list[str]]:
    ip = SYNTAX[version].ip
    listener = ruleset.listener(version)
    own = standing.own if version == 4 else standing.own6
    icmp, unreachable = ("icmp", "icmp") if version == 4 else ("icmpv6", "icmpv6")
    # Without masquerading, a node that is a client too would be answered past this host.
    whom = "" if standing.masquerade else f" {ip} saddr @backends"
    limited = f"limit rate {RESETS_PER_SECOND}/second burst {RESETS_PER_SECOND} packets"
    found: dict[str, list[str]] = {
        "classify": [
            "type filter hook prerouting priority mangle; policy accept;",
            "ct direction reply accept",
            "meta mark set 0",  # what mode dsr left alone may have one
            f"meta mark set {listener} map @listeners",
        ],
        "translate": [
            "type nat hook prerouting priority dstnat; policy accept;",
            *([f"tcp flags & (fin | syn | rst) == 0 {_hand_over(version)}"] if standing.hands_over else []),
            f"meta mark & {marks.RESTRICTED:#010x} != 0 jump restricted",
            f"{listener} @connections",
            f"meta mark & {marks.CHOICE:#010x} vmap @tables",
        ],
        "source": [
            "type nat hook postrouting priority srcnat; policy accept;",
            f"ct status dnat {ip} daddr @begun",
            *([f"ct status dnat{whom} snat {ip} to {own.ip}"] if own is not None else []),
        ],
        "forward": [
            "type filter hook forward priority filter; policy drop;",
            "ct direction reply ct status dnat accept",
            f"ct status dnat {ip} daddr @backends accept",
            "ct status dnat accept",
            # Without nodes. Routers may send to any host, also to one that has not the address on its link.
            "ct state invalid drop",
            f"{listener} @ports {limited} jump refuse",
        ],
        "input": [
            "type filter hook input priority filter; policy drop;",
            'iif "lo" accept',
            *(_NEIGHBOUR_DISCOVERY if version == 6 else ()),
            # Answers to the namespace's own questions. What was to be translated and could not be stays out.
            "ct status dnat drop",
            "ct state established,related accept",
            *(_strays(version) if standing.hands_over else ()),
            "ct state invalid drop",
            *(_bfd(version, own.ip) if own is not None else ()),
            *([f"{icmp} type echo-request accept"] if standing.answer_ping else []),
            f"{limited} jump refuse",
        ],
        "refuse": [
            "meta l4proto tcp reject with tcp reset",
            f"meta l4proto udp reject with {unreachable} type port-unreachable",
        ],
        "restricted": ruleset.source_rules(version, "sources_{}"),
    }
    if version == 6:
        # What is passed on comes and goes by the same link, so the kernel tells its sender of a way past this host,
        # on which nothing is translated. IPv4 has a switch for it (see sysctls), IPv6 has none.
        found["output"] = [
            "type filter hook output priority filter; policy accept;",
            "icmpv6 type nd-redirect drop",
        ]
    for size in SIZES:
        for by_client in (False, True):
            client = ruleset.client(version, by_client=by_client)
            node = f"meta mark . jhash {client} mod {size} seed {ruleset.SEED:#x} map @slots_{size}"
            found[chain(size, by_client=by_client)] = [
                f"meta mark set meta mark & {marks.GROUP:#010x}",
                f"meta l4proto {{ tcp, udp }} dnat {ip} to {node} : {listener} map @ports",
            ]
    return found


def _hand_over(version: Version, *, quoted: bool = False) -> str:
    """Statements that send a packet on to the host that had its listener's address before, by that host's MAC and
    otherwise as it is; where there was none, they do not match. A copy goes, which conntrack does not see: so all that
    follows is as unknown here as the first. Each copy has one hop less: two hosts that name each other end it, too."""
    listener = ruleset.QUOTED_LISTENER[version] if quoted else ruleset.listener(version)
    hops = "ip ttl" if version == 4 else "ip6 hoplimit"
    return f"{hops} > 1 dup to {listener} map @{'quoted' if quoted else 'predecessors'} drop"


def _strays(version: Version) -> list[str]:
    """What conntrack takes for no beginning of anything: the end of a connection, and ICMP errors about one."""
    icmp = "icmp" if version == 4 else "icmpv6"
    return [
        f"ct state invalid tcp flags & syn == 0 {_hand_over(version)}",
        f"ct state invalid {icmp} type {ruleset.ICMP_ERRORS[version]} {_hand_over(version, quoted=True)}",
    ]


def _bfd(version: Version, own: IPAddress) -> list[str]:
    """Other hosts' signs of life, which come to the namespace's own address."""
    ip, hops = ("ip", "ttl") if version == 4 else ("ip6", "hoplimit")
    rate = f"limit rate {BFD_PER_SECOND}/second burst {BFD_PER_SECOND // 10} packets"
    return [f"{ip} daddr {own} {ip} {hops} 255 udp dport {BFD_PORT} {rate} accept"]
