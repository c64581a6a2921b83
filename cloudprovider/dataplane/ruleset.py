"""The static part of a namespace's rules, in nft(8)'s language; everything that changes is an element of its maps.

How a packet goes::

    classify   every packet: (address, protocol, port) → mark: the group's number and flags; counts by listener
    translate  a flow's first packet: source ranges, then (mark) → the chain of the group's table size and hash
    by_*_N     (group, Maglev slot) → node, (address, protocol, port) → port on it
    forward    nothing but what was translated
    source     answers come back here: the namespace's own address is what nodes see
    refuse     what is left at input, quickly and with a bounded rate: RST, ICMP; ping is answered

The choice of a node is two-stage, so that a listener costs two elements however many nodes there are, and a group's
table stands once however many Services share it. libnftables loads this at start only, in one transaction that
replaces the rules and leaves the elements; nothing here is ever run as a subprocess.
"""

import ctypes
import ctypes.util
from ipaddress import IPv4Address
from typing import Final

from cloudprovider.core.errors import DataPlaneError
from cloudprovider.core.maglev import SIZES

TABLE: Final = "cloudprovider"
LISTENERS: Final = "listeners"
PORTS: Final = "ports"
TABLES: Final = "tables"

BY_CLIENT: Final = 0x8000_0000
"""Mark bit: choose by the client's address alone."""
RESTRICTED: Final = 0x4000_0000
"""Mark bit: look at source ranges."""
GROUP: Final = 0x00FF_FFFF
"""Mark bits: the group."""

SEED: Final = 0x5EED
"""The same on every host, so that a host that takes over sends a flow where it went before."""

RESETS_PER_SECOND: Final = 1000
"""How many RST and ICMP errors a namespace sends at most; beyond, it is silent."""

_LISTENER_TYPE: Final = "ipv4_addr . inet_proto . inet_service"
_LISTENER: Final = "ip daddr . meta l4proto . th dport"


def slots(size: int) -> str:
    """The map of (group, slot) to node for tables of ``size`` slots."""
    return f"slots_{size}"


def sources(prefix_length: int) -> str:
    """The set of (listener, network) for networks of that prefix length."""
    return f"sources_{prefix_length}"


def chain(size: int, *, by_client: bool) -> str:
    """The chain that chooses from tables of ``size`` slots."""
    return f"by_{'client' if by_client else 'flow'}_{size}"


def sets() -> list[str]:
    """Every set and map, by name."""
    return [LISTENERS, PORTS, TABLES, *map(slots, SIZES), *map(sources, range(33))]


def chains(own: IPv4Address) -> dict[str, list[str]]:
    """Every chain with its rules. ``own`` is the namespace's address, which translated flows come from."""
    found: dict[str, list[str]] = {
        "classify": [
            "type filter hook prerouting priority mangle; policy accept;",
            f"meta mark set {_LISTENER} map @{LISTENERS}",
        ],
        "translate": [
            "type nat hook prerouting priority dstnat; policy accept;",
            f"meta mark & {RESTRICTED:#010x} != 0 jump restricted",
            f"meta mark & {BY_CLIENT | GROUP:#010x} vmap @{TABLES}",
        ],
        "source": [
            "type nat hook postrouting priority srcnat; policy accept;",
            f"ct status dnat snat ip to {own}",
        ],
        "forward": [
            "type filter hook forward priority filter; policy drop;",
            "ct status dnat accept",
        ],
        "input": [
            "type filter hook input priority filter; policy drop;",
            'iif "lo" accept',
            # Answers to the namespace's own questions. What was to be translated and could not be stays out.
            "ct status dnat drop",
            "ct state established,related accept",
            "ct state invalid drop",
            "icmp type echo-request accept",
            f"limit rate {RESETS_PER_SECOND}/second burst {RESETS_PER_SECOND} packets jump refuse",
        ],
        "refuse": [
            "meta l4proto tcp reject with tcp reset",
            "meta l4proto udp reject with icmp type port-unreachable",
        ],
        # One exact look-up a prefix length: an interval set would be rebuilt whole at every change.
        "restricted": [
            *(
                f"{_LISTENER} . ip saddr & {_mask(length)} @{sources(length)} return"
                if length < 32
                else f"{_LISTENER} . ip saddr @{sources(length)} return"
                for length in range(32, -1, -1)
            ),
            "drop",
        ],
    }
    for size in SIZES:
        for by_client in (False, True):
            client = "ip saddr" if by_client else "ip saddr . th sport"
            node = f"meta mark . jhash {client} mod {size} seed {SEED:#x} map @{slots(size)}"
            found[chain(size, by_client=by_client)] = [
                f"meta mark set meta mark & {GROUP:#010x}",
                f"meta l4proto {{ tcp, udp }} dnat ip to {node} : {_LISTENER} map @{PORTS}",
            ]
    return found


def script(own: IPv4Address, *, strangers: list[str], afresh: bool) -> str:
    """The whole as one nft transaction: it keeps the elements that are there, or drops them when ``afresh``.

    ``strangers`` are chains that somebody else put into the table: they go.
    """
    lines = [f"add table ip {TABLE}"]
    if afresh:
        lines += [f"delete table ip {TABLE}", f"add table ip {TABLE}"]
    lines += [f"add map ip {TABLE} {LISTENERS} {{ type {_LISTENER_TYPE} : mark; counter; }}"]
    lines += [f"add map ip {TABLE} {PORTS} {{ type {_LISTENER_TYPE} : inet_service; }}"]
    lines += [f"add map ip {TABLE} {TABLES} {{ type mark : verdict; }}"]
    lines += [
        f"add map ip {TABLE} {slots(size)} {{ typeof meta mark . numgen random mod {size} : ip daddr; }}"
        for size in SIZES
    ]
    lines += [f"add set ip {TABLE} {sources(n)} {{ type {_LISTENER_TYPE} . ipv4_addr; }}" for n in range(33)]
    wanted = chains(own)
    for name, rules in wanted.items():
        hook = f" {{ {rules[0]} }}" if rules[0].startswith("type ") else ""
        lines += [f"add chain ip {TABLE} {name}{hook}", f"flush chain ip {TABLE} {name}"]
    if not afresh:
        lines += [f"flush chain ip {TABLE} {name}" for name in strangers]
        lines += [f"delete chain ip {TABLE} {name}" for name in strangers]
    for name, rules in wanted.items():
        lines += [f"add rule ip {TABLE} {name} {rule}" for rule in rules if not rule.startswith("type ")]
    return "\n".join(lines) + "\n"


def run(commands: str) -> None:
    """Run an nft script by libnftables in the namespace of this thread. Raises DataPlaneError with what it said."""
    library = ctypes.CDLL(ctypes.util.find_library("nftables") or "libnftables.so.1")
    library.nft_ctx_new.restype = ctypes.c_void_p
    library.nft_ctx_get_error_buffer.restype = ctypes.c_char_p
    context = ctypes.c_void_p(library.nft_ctx_new(0))
    try:
        library.nft_ctx_buffer_error(context)
        library.nft_ctx_buffer_output(context)
        if library.nft_run_cmd_from_buffer(context, commands.encode()) != 0:
            said = (library.nft_ctx_get_error_buffer(context) or b"").decode(errors="replace").strip()
            raise DataPlaneError(f"libnftables refused the static rules: {said.partition(chr(10))[0] or 'no reason'}")
    finally:
        library.nft_ctx_free(context)


def _mask(length: int) -> IPv4Address:
    return IPv4Address(0xFFFF_FFFF << (32 - length) & 0xFFFF_FFFF)
