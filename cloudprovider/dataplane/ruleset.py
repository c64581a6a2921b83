"""The static part of a namespace's rules, in nft(8)'s language; everything that changes is an element of its maps.

Three tables named ``cloudprovider``: ``netdev`` passes frames on in mode ``dsr``
(:mod:`cloudprovider.dataplane.ruleset_dsr`); what it leaves alone comes to ``ip`` and ``ip6``, which translate in mode
``nat``, and refuse the rest (:mod:`cloudprovider.dataplane.ruleset_nat`).

libnftables loads this at start only, in one transaction that replaces the rules of all three and leaves the elements;
nothing here is ever run as a subprocess. So an agent takes over from an older one without a gap as long as it only
adds sets, adds chains and changes rules. A set whose meaning changes gets another name. And the older one takes over
again as long as elements lead only to chains that it has, too.
"""

import ctypes
import ctypes.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal, NamedTuple

from cloudprovider.core.errors import ConfigurationError, DataPlaneError
from cloudprovider.dataplane.nftables import NFPROTO_IPV4, NFPROTO_IPV6, NFPROTO_NETDEV

TABLE: Final = "cloudprovider"

Version = Literal[4, 6]
VERSIONS: Final[tuple[Version, Version]] = (4, 6)

SEED: Final = 0x5EED
"""The same on every host, so that a host that takes over sends a flow where it went before."""


class Syntax(NamedTuple):
    """How rules speak of one IP version."""

    ip: str
    """The protocol, as in ``ip daddr``."""
    type: str
    bits: int


SYNTAX: Final[Mapping[Version, Syntax]] = {4: Syntax("ip", "ipv4_addr", 32), 6: Syntax("ip6", "ipv6_addr", 128)}
NAT_FAMILY: Final[Mapping[Version, int]] = {4: NFPROTO_IPV4, 6: NFPROTO_IPV6}
QUOTED_LISTENER: Final[Mapping[Version, str]] = {
    4: "@th,160,32 . @th,136,8 . @th,224,16",
    6: "@th,128,128 . @th,112,8 . @th,384,16",
}
"""The listener that an ICMP error is about: what it quotes went the other way."""
ICMP_ERRORS: Final[Mapping[Version, str]] = {
    4: "{ destination-unreachable, time-exceeded, parameter-problem }",
    6: "{ destination-unreachable, packet-too-big, time-exceeded, parameter-problem }",
}
"""The types of ICMP, or ICMPv6, that quote a packet."""
_KEYWORDS: Final = {NFPROTO_IPV4: "ip", NFPROTO_IPV6: "ip6", NFPROTO_NETDEV: "netdev"}


def listener_type(version: Version) -> str:
    """The type of a listener as a key."""
    return f"{SYNTAX[version].type} . inet_proto . inet_service"


def listener(version: Version) -> str:
    """The listener that a packet is for."""
    return f"{SYNTAX[version].ip} daddr . meta l4proto . th dport"


def client(version: Version, *, by_client: bool) -> str:
    """What of a packet decides which node it goes to."""
    return f"{SYNTAX[version].ip} saddr" + ("" if by_client else " . th sport")


def source_rules(version: Version, name: str) -> list[str]:
    """Rules that return for a client in one of the listener's source ranges, and drop what is left. ``name`` of the
    set for a prefix length has ``{}`` for it. One exact look-up a length: an interval set would be rebuilt whole at
    every change."""
    ip, _, bits = SYNTAX[version]
    rules: list[str] = []
    for length in range(bits, -1, -1):
        mask = "" if length == bits else f" & {_mask(version, length)}"
        rules.append(f"{listener(version)} . {ip} saddr{mask} @{name.format(length)} return")
    return [*rules, "drop"]


def _mask(version: Version, length: int) -> str:
    bits = SYNTAX[version].bits
    number = ((1 << bits) - 1) ^ ((1 << bits - length) - 1)
    if version == 4:
        return ".".join(str(octet) for octet in number.to_bytes(4, "big"))
    return ":".join(number.to_bytes(16, "big")[at : at + 2].hex() for at in range(0, 16, 2))


@dataclass(frozen=True)
class StaticTable:
    """One table: what is declared before its chains (sets, maps, counters) and the chains, each with its rules; a
    chain's first line may be its hook. ``elements`` are there from the start, whether a plan wants them or not."""

    family: int
    declarations: Sequence[str]
    chains: Mapping[str, Sequence[str]]
    elements: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def script(self, *, afresh: bool) -> list[str]:
        """The nft commands that bring it about: the elements that are there stay, or go when ``afresh``."""
        table = f"{_KEYWORDS[self.family]} {TABLE}"
        lines = [f"add table {table}"]
        if afresh:
            lines += [f"delete table {table}", f"add table {table}"]
        for declaration in self.declarations:
            what, _, rest = declaration.partition(" ")
            lines.append(f"add {what} {table} {rest}")
        for name, rules in self.chains.items():
            hook = f" {{ {rules[0]} }}" if _is_hook(rules[0]) else ""
            lines += [f"add chain {table} {name}{hook}", f"flush chain {table} {name}"]
        for name, rules in self.chains.items():
            lines += [f"add rule {table} {name} {rule}" for rule in rules if not _is_hook(rule)]
        lines += [f"add element {table} {name} {{ {', '.join(those)} }}" for name, those in self.elements.items()]
        return lines

    def without(self, chains: Sequence[str]) -> list[str]:
        """The nft commands that remove chains, which are refused while an element leads to one of them."""
        table = f"{_KEYWORDS[self.family]} {TABLE}"
        return [f"{verb} chain {table} {name}" for verb in ("flush", "delete") for name in chains]


def _is_hook(line: str) -> bool:
    return line.startswith("type ")


def load_library() -> ctypes.CDLL:
    """libnftables. Raises ConfigurationError where there is none."""
    try:
        return ctypes.CDLL(ctypes.util.find_library("nftables") or "libnftables.so.1")
    except OSError as error:
        raise ConfigurationError(f"libnftables can't be loaded ({error}): install it (Debian: libnftables1)") from error


def run(commands: str) -> None:
    """Run an nft script by libnftables in the namespace of this thread. Raises DataPlaneError with what it said."""
    library = load_library()
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
