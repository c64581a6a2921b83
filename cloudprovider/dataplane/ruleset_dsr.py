"""The static rules of mode ``dsr``: frames for a VIP go on unchanged to a node's MAC. How a frame goes::

    ingress     frames to this host's MAC only: flooded ones are other balancers'. Of an IP version without any
                listener here it goes on to the stack at once: (EtherType) → v4, v6
    v4, v6      (address, protocol, port) → mark, counted; (mark) → the chain of the group's table size and hash.
                What is for no listener goes on to the stack: mode nat, refusal, ping, ARP, Neighbor Discovery
    by_*_N      frames that come from the group's own nodes are dropped and counted (a node that does not accept the
                VIP sends them back, and one SYN would circle 64 times); (group, Maglev slot) → MAC
    out         counts by node, and what begins by listener; this host's MAC as the sender; out by the link it came by

What most frames go by has few rules and expressions, which cost each frame some 20 ns apiece: what can be is one rule,
as nft adds a check of the protocol to each.

Nothing is remembered, so any host may take over at any time. While a group or a listener changes, its frames take
another way, because the elements of ``tables`` and ``steps`` say so: ``tracked`` sees whether a TCP flow begins or goes
on, and pins it to its node (``pins``: flow → MAC, or zero for the stack, where conntrack knows it).

Fragments are chosen by the client's address alone, as only the first has ports, by a map of VIP to group. ICMP errors
go by the flow that they quote. A key of a map that rules write to has at most 16 bytes (nft 1.0.6 aborts on more), so
pins are a map for TCP and one for UDP, and in IPv6 a client is a hash and a VIP its last four bytes; ports are read
behind an IP header without options, as these rarely pass any network.
"""

from functools import cache
from typing import Final, Literal

from cloudprovider.core.maglev import SIZES
from cloudprovider.core.plan import L4Protocol
from cloudprovider.dataplane import marks, ruleset
from cloudprovider.dataplane.marks import Step
from cloudprovider.dataplane.naming import LINK
from cloudprovider.dataplane.nftables import NFPROTO_NETDEV, SetName
from cloudprovider.dataplane.ruleset import SYNTAX, VERSIONS, StaticTable, Version
from cloudprovider.dataplane.standing import Standing

MOST_PINS: Final = 65_536
"""How many flows are pinned at most, of each IP version and protocol. More than that go by the tables alone."""

HALF_OPEN: Final = 60
"""Seconds that a SYN is pinned when nothing follows it."""

MEMBERS: Final = SetName(NFPROTO_NETDEV, "members")
"""The set of (group, MAC): whose frames come back."""
BACKENDS: Final = SetName(NFPROTO_NETDEV, "backends")
"""The set of all nodes, which counts what is sent on to each."""
BEGUN: Final = SetName(NFPROTO_NETDEV, "begun")
"""The set of all nodes, which counts the TCP flows that begin."""

WAYS: Final = SetName(NFPROTO_NETDEV, "ways")
"""The map of EtherType to chain, with the IP versions that have a listener here."""

Choice = Literal["by", "pin", "old", "last", "error"]
"""What a chain does: choose a node; choose and pin it; choose from the former members and pin; the same without
pinning; choose for an error. Elements lead to these, so an older agent must know a chain's name to take over again."""

_KEY: Final[dict[Version, str]] = {
    4: "@nh,96,32 . @nh,128,32 . @nh,160,16 . @nh,176,16",
    6: "jhash ip6 saddr mod 4294967295 seed 0x1 . @nh,288,32 . @nh,320,16 . @nh,336,16",
}
"""A flow: client, VIP, the client's port, the VIP's."""
_QUOTED_KEY: Final[dict[Version, str]] = {
    4: "@th,192,32 . @th,160,32 . @th,240,16 . @th,224,16",
    6: "jhash @th,256,128 mod 4294967295 seed 0x1 . @th,224,32 . @th,400,16 . @th,384,16",
}
"""The same of the packet that an ICMP error quotes, which went the other way."""
_QUOTED_CLIENT: Final[dict[Version, str]] = {4: "@th,192,32", 6: "@th,256,128"}
_QUOTED_PORT: Final[dict[Version, str]] = {4: "@th,240,16", 6: "@th,400,16"}

_SYN: Final = "tcp flags & (fin|syn|rst|ack) == syn"
_ZERO: Final = "00:00:00:00:00:00"
_TRANSPORTS: Final = ("tcp", "udp")
_RETURNED: Final = "size 4096; flags dynamic,timeout; timeout 10s; counter;"
_BEGINNING: Final = "size 1024; flags dynamic,timeout; timeout 2s; counter;"


@cache
def listeners(version: Version) -> SetName:
    """The map of listener to mark, which counts."""
    return SetName(NFPROTO_NETDEV, f"listeners{version}")


@cache
def connections(version: Version) -> SetName:
    """The set of all listeners, which counts the TCP flows that begin."""
    return SetName(NFPROTO_NETDEV, f"connections{version}")


@cache
def former(version: Version) -> SetName:
    """The map of listener to the mark of the choice that it comes from; 0: mode ``nat``."""
    return SetName(NFPROTO_NETDEV, f"former{version}")


@cache
def errors(version: Version) -> SetName:
    """The map of listener, as ICMP errors quote it, to mark."""
    return SetName(NFPROTO_NETDEV, f"errors{version}")


@cache
def fragments(version: Version) -> SetName:
    """The map of VIP to the mark that its fragments go by."""
    return SetName(NFPROTO_NETDEV, f"fragments{version}")


@cache
def tables(version: Version) -> SetName:
    """The map of mark to chain: where most frames go."""
    return SetName(NFPROTO_NETDEV, f"tables{version}")


@cache
def steps(version: Version) -> SetName:
    """The map of mark, with a step, to chain. It is one of its own, as no chain may come back to itself."""
    return SetName(NFPROTO_NETDEV, f"steps{version}")


@cache
def full(version: Version) -> SetName:
    """The map of mark to chain for a TCP flow that can't be pinned, as too many are."""
    return SetName(NFPROTO_NETDEV, f"full{version}")


@cache
def slots(size: int) -> SetName:
    """The map of (group, slot) to MAC for tables of ``size`` slots."""
    return SetName(NFPROTO_NETDEV, f"slots_{size}")


@cache
def sources(version: Version, length: int) -> SetName:
    """The set of (listener, network) for networks of that prefix length."""
    return SetName(NFPROTO_NETDEV, f"sources{version}_{length}")


@cache
def pins(version: Version, protocol: L4Protocol) -> SetName:
    """The map of flow to MAC."""
    return SetName(NFPROTO_NETDEV, f"pins{version}_{protocol.lower()}")


@cache
def returned(version: Version) -> SetName:
    """The set of (MAC, listener) that frames came back by, which counts."""
    return SetName(NFPROTO_NETDEV, f"returned{version}")


@cache
def returned_syns(version: Version) -> SetName:
    """The set of (MAC, client, its port, VIP, port) of TCP flows whose SYN came back, which counts."""
    return SetName(NFPROTO_NETDEV, f"returned_syns{version}")


def way(version: Version) -> str:
    """The chain for whole packets of an IP version, where it has a listener here."""
    return f"v{version}"


def tracked(version: Version) -> str:
    """The chain for what is pinned, or to be."""
    return f"tracked{version}"


def chain(what: Choice, version: Version, size: int, *, by_client: bool) -> str:
    """The chain that chooses from tables of ``size`` slots."""
    return f"{what}_{'client' if by_client else 'flow'}{version}_{size}"


def table(standing: Standing) -> StaticTable:
    """The whole table."""
    declarations = [
        *(f"map slots_{n} {{ typeof meta mark . numgen random mod {n} : ether daddr; }}" for n in SIZES),
        "map ways { type ether_type : verdict; }",
        "set members { type mark . ether_addr; }",
        # Nodes that flows are pinned to may have left their group meanwhile; the frames of these come back, too.
        "set holders { type mark . ether_addr; size 65536; flags dynamic,timeout; timeout 1h; }",
        "set backends { type ether_addr; counter; }",
        "set begun { type ether_addr; counter; }",
        # Fragments for a VIP whose listeners go to several groups: for the stack, which refuses those of mode dsr.
        "counter fragments_not_placed",
    ]
    sending = f'ether saddr set {standing.mac} fwd to "{LINK}"'
    chains: dict[str, list[str]] = {
        "ingress": [
            f'type filter hook ingress device "{LINK}" priority 0; policy accept;',
            "meta pkttype != host accept",
            "meta protocol vmap @ways",
        ],
        "hold": [f"add @holders {{ meta mark & {marks.GROUP:#010x} . ether daddr }}", "goto out"],
        "out": [
            f"{_SYN} jump begins",
            f"ether daddr @backends {sending}",
            sending,
        ],
        "begins": [
            "ether daddr @begun",
            *(f"{ruleset.listener(version)} @{connections(version).name}" for version in VERSIONS),
        ],
    }
    for version in VERSIONS:
        declarations += _sets(version)
        chains |= _way(version) | _fragments(version) | _errors(version) | _tracked(version)
        for size in SIZES:
            for by_client in (False, True):
                chains |= _choices(version, size, by_client=by_client)
    # An older agent's listeners are seen from the first moment on; whoever fills the tables shuts the ways not needed.
    ways = [f"{SYNTAX[version].ip} : goto {way(version)}" for version in VERSIONS]
    return StaticTable(NFPROTO_NETDEV, declarations, chains, {WAYS.name: ways})


def _sets(version: Version) -> list[str]:
    _, address, bits = SYNTAX[version]
    listener = ruleset.listener_type(version)
    end = f"{address} . inet_service"
    # A first part that no rule looks up: it stands for the type "integer", which a hash has as well.
    flow = _KEY[4] if version == 4 else f"@nh,64,32 . {_KEY[6].partition(' . ')[2]}"
    return [
        f"map listeners{version} {{ type {listener} : mark; counter; }}",
        f"set connections{version} {{ type {listener}; counter; }}",
        f"map former{version} {{ type {listener} : mark; }}",
        f"map errors{version} {{ typeof {ruleset.QUOTED_LISTENER[version]} : meta mark; }}",
        f"map fragments{version} {{ type {address} : mark; }}",
        f"map tables{version} {{ type mark : verdict; }}",
        f"map steps{version} {{ type mark : verdict; }}",
        f"map full{version} {{ type mark : verdict; }}",
        *(f"set sources{version}_{n} {{ type {listener} . {address}; }}" for n in range(bits + 1)),
        *(
            f"map pins{version}_{transport} {{ typeof {flow} : ether daddr; size {MOST_PINS}; "
            "flags dynamic,timeout; timeout 1h; }"
            for transport in _TRANSPORTS
        ),
        f"set returned{version} {{ type ether_addr . {listener}; {_RETURNED} }}",
        f"set returned_syns{version} {{ type ether_addr . {end} . {end}; {_BEGINNING} }}",
    ]


def _way(version: Version) -> dict[str, list[str]]:
    """From ingress to the chain that chooses."""
    ip = SYNTAX[version].ip
    listener = ruleset.listener(version)
    flow = f"{ip} saddr . tcp sport . {ip} daddr . tcp dport"
    whole, fragment = (
        ("ip frag-off & 0x3fff == 0", "ip frag-off & 0x3fff != 0")
        if version == 4
        else ("ip6 nexthdr != 44", "ip6 nexthdr 44")
    )
    icmp = "icmp" if version == 4 else "icmpv6"
    return {
        way(version): [
            "meta mark set 0",
            f"{whole} meta mark set {listener} map @listeners{version} meta mark vmap @tables{version}",
            f"meta mark != 0 goto flagged{version}",
            f"{fragment} goto fragments{version}",
            f"meta l4proto {icmp} goto errors{version}",
        ],
        f"flagged{version}": [
            f"meta mark & {marks.RESTRICTED:#010x} != 0 goto restricted{version}",
            f"meta mark & {marks.TRACKED:#010x} != 0 goto tracked{version}",
        ],
        # Who may not begin a TCP flow has none that could go on.
        f"restricted{version}": [
            f"tcp flags & syn == 0 goto permitted{version}",
            f"jump permit{version}",
            f"goto permitted{version}",
        ],
        f"permit{version}": ruleset.source_rules(version, f"sources{version}_{{}}"),
        f"permitted{version}": [
            f"meta mark set meta mark & {0xFFFFFFFF ^ marks.RESTRICTED:#010x}",
            f"meta mark vmap @tables{version}",
            f"meta mark & {marks.TRACKED:#010x} != 0 goto tracked{version}",
        ],
        f"back{version}": [
            f"update @returned{version} {{ ether saddr . {ip} daddr . meta l4proto . th dport }}",
            f"{_SYN} update @returned_syns{version} {{ ether saddr . {flow} }}",
            "drop",
        ],
    }


def _fragments(version: Version) -> dict[str, list[str]]:
    """The first one has ports, and is held against source ranges: without it nobody can use the others."""
    first = "ip frag-off & 0x1fff == 0" if version == 4 else "frag frag-off 0"
    return {
        f"fragments{version}": [
            f"{first} jump first{version}",
            f"meta mark set {SYNTAX[version].ip} daddr map @fragments{version}",
            "meta mark 0 accept",
            *_step(version, Step.FRAGMENT),
            'counter name "fragments_not_placed"',
        ],
        f"first{version}": [
            f"meta mark set {ruleset.listener(version)} map @listeners{version}",
            f"meta mark & {marks.RESTRICTED:#010x} != 0 jump permit{version}",
            "meta mark set 0",
        ],
    }


def _errors(version: Version) -> dict[str, list[str]]:
    """ICMP errors about what a node sent to a client: the quoted packet tells listener and client."""
    if version == 4:
        about = [
            f"icmp type != {ruleset.ICMP_ERRORS[version]} accept",
            "@th,64,8 != 0x45 accept",  # the quoted header has no options
        ]
    else:
        about = [f"icmpv6 type != {ruleset.ICMP_ERRORS[version]} accept"]
    pinned = [
        f"{_quoted_protocol(version, transport)} ether daddr set {_QUOTED_KEY[version]} "
        f"map @pins{version}_{transport} goto pinned_error"
        for transport in _TRANSPORTS
    ]
    return {
        f"errors{version}": [
            *about,
            f"meta mark set {ruleset.QUOTED_LISTENER[version]} map @errors{version}",
            "meta mark 0 accept",
            f"meta mark & {marks.GROUP:#010x} . ether saddr @members drop",
            f"meta mark & {marks.GROUP:#010x} . ether saddr @holders drop",
            *pinned,
            *_step(version, Step.ERROR),
        ],
        "pinned_error": [f"ether daddr {_ZERO} accept", "goto out"],
    }


def _quoted_protocol(version: Version, transport: str) -> str:
    return f"@th,{136 if version == 4 else 112},8 {6 if transport == 'tcp' else 17}"


def _tracked(version: Version) -> dict[str, list[str]]:
    """What a flow does while its listener or group changes."""
    key = _KEY[version]
    group = f"meta mark & {marks.GROUP:#010x}"

    def pinned(transport: str) -> list[str]:
        pins = f"@pins{version}_{transport}"
        # A full set ends the rule, not the frame's way.
        return [f"update {pins} {{ {key} : ether daddr }}", f"update @holders {{ {group} . ether daddr }}", "goto out"]

    def stack(transport: str) -> list[str]:
        return [f"update @pins{version}_{transport} {{ {key} : {_ZERO} }}", "accept"]

    return {
        f"tracked{version}": [
            f"{group} . ether saddr @members goto back{version}",
            f"{group} . ether saddr @holders goto back{version}",
            f"meta l4proto udp goto datagram{version}",
            f"{_SYN} goto begin{version}",
            f"ether daddr set {key} map @pins{version}_tcp goto pinned{version}_tcp",
            f"meta mark & {marks.MOVED:#010x} != 0 goto leave{version}",
            *_step(version, Step.GOING),
        ],
        f"begin{version}": [
            f"delete @pins{version}_tcp {{ {key} : ether daddr }}",
            f"meta mark & {marks.MOVED:#010x} != 0 goto join{version}",
            *_step(version, Step.BEGIN),
        ],
        f"join{version}": [
            f"{group} == 0 goto stack{version}",
            *_step(version, Step.JOIN),
        ],
        f"leave{version}": [
            f"meta mark set {ruleset.listener(version)} map @former{version}",
            f"{group} == 0 goto stack{version}",
            *_step(version, Step.LEAVE),
        ],
        f"datagram{version}": [
            f"ether daddr set {key} map @pins{version}_udp goto pinned{version}_udp",
            *_step(version, Step.DATAGRAM),
        ],
        f"pinned{version}_tcp": [f"ether daddr {_ZERO} goto stack{version}", *pinned("tcp")],
        f"pinned{version}_udp": [f"{group} . ether daddr != @members goto moved{version}", *pinned("udp")],
        f"moved{version}": [
            f"delete @pins{version}_udp {{ {key} : ether daddr }}",
            *_step(version, Step.DATAGRAM),
        ],
        f"stack{version}": stack("tcp"),
    }


def _choices(version: Version, size: int, *, by_client: bool) -> dict[str, list[str]]:
    """The chains that choose from tables of one size by one hash."""

    def choose(client: str) -> str:
        return f"ether daddr set meta mark . jhash {client} mod {size} seed {ruleset.SEED:#x} map @slots_{size}"

    client = ruleset.client(version, by_client=by_client)
    quoted = _QUOTED_CLIENT[version] + ("" if by_client else f" . {_QUOTED_PORT[version]}")
    only_group = f"meta mark set meta mark & {marks.GROUP:#010x}"
    from_former = f"meta mark set meta mark | {marks.OLD:#010x}"
    key, tcp, udp = _KEY[version], f"@pins{version}_tcp", f"@pins{version}_udp"
    pin = [
        # A flood of SYNs from nowhere is soon forgotten; the next packet of a real flow makes it an hour.
        f"{_SYN} add {tcp} {{ {key} timeout {HALF_OPEN}s : ether daddr }} goto hold",
        f"meta l4proto tcp add {tcp} {{ {key} : ether daddr }} goto hold",
        f"meta l4proto udp add {udp} {{ {key} : ether daddr }} goto hold",
    ]
    names: tuple[Choice, ...] = ("by", "pin", "old", "last", "error")
    by, pinning, old, last, error = (chain(what, version, size, by_client=by_client) for what in names)
    return {
        by: [
            *([only_group] if by_client else []),  # all others come with the group alone
            f"meta mark . ether saddr != @members {choose(client)} goto out",
            f"meta mark . ether saddr @members goto back{version}",
        ],
        pinning: [
            only_group,
            choose(client),
            *pin,
            # The map is full. What comes next of a TCP flow will go where flows under way go: so do so from the start.
            "meta l4proto udp goto out",
            *([f"meta mark set meta mark | {marks.BY_CLIENT:#010x}"] if by_client else []),
            f"meta mark set {ruleset.listener(version)} map @former{version}",
            f"meta mark vmap @full{version}",
            "goto out",
        ],
        old: [only_group, from_former, choose(client), *pin, "goto out"],
        last: [only_group, from_former, f"{choose(client)} goto out"],
        error: [only_group, f"{choose(quoted)} goto out"],
    }


def _step(version: Version, step: Step) -> list[str]:
    return [f"meta mark set meta mark & {marks.CHOICE:#010x}", f"meta mark | {step:#010x} vmap @steps{version}"]
