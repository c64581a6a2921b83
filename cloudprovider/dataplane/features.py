"""What of nf_tables this kernel has: asked before the rules are loaded, so that what lacks can be named.

Each feature is a script that makes a table and deletes it again in one transaction: the kernel checks all of it, and
nothing is left.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from cloudprovider.core.errors import DataPlaneError
from cloudprovider.dataplane import ruleset
from cloudprovider.dataplane.naming import LINK

_PROBE: Final = "cloudprovider_probe"

Script = Callable[[str], None]
"""Runs an nft script in the namespace of this thread; raises DataPlaneError where it is refused."""


@dataclass(frozen=True)
class Features:
    """What lacks, as a sentence that says what to do; "" where nothing does. Without ``nat`` nothing can be served."""

    nat: str = ""
    dsr: str = ""
    handover: str = ""


_NAT: Final[Mapping[str, Sequence[str]]] = {
    "tables of the family ip (CONFIG_NF_TABLES_IPV4)": ["chain ip c { type filter hook input priority 0; }"],
    "connection tracking (CONFIG_NFT_CT)": ["chain ip c", "rule ip c ct state established accept"],
    "address translation (CONFIG_NFT_NAT)": [
        "chain ip c { type nat hook prerouting priority -100; }",
        "rule ip c meta l4proto tcp dnat ip to 192.0.2.1:80",
    ],
    "hashes (CONFIG_NFT_HASH)": ["chain ip c", "rule ip c meta mark set jhash ip saddr mod 7 seed 1"],
    "refusal (CONFIG_NFT_REJECT_IPV4)": [
        "chain ip c { type filter hook input priority 0; }",
        "rule ip c meta l4proto tcp reject with tcp reset",
    ],
}
_DSR: Final[Mapping[str, Sequence[str]]] = {
    "a hook where frames come in (CONFIG_NETFILTER_INGRESS, CONFIG_NF_TABLES_NETDEV)": [
        f'chain netdev c {{ type filter hook ingress device "{LINK}" priority 0; }}'
    ],
    "passing frames on (CONFIG_NFT_FWD_NETDEV)": [
        f'chain netdev c {{ type filter hook ingress device "{LINK}" priority 0; }}',
        f'rule netdev c ip daddr 192.0.2.1 fwd to "{LINK}"',
    ],
    "hashes (CONFIG_NFT_HASH)": ["chain netdev c", "rule netdev c meta mark set jhash ip saddr mod 7 seed 1"],
    "sets that rules write to (CONFIG_NF_TABLES, dynset)": [
        "set netdev s { type ipv4_addr; size 8; flags dynamic,timeout; timeout 1m; }",
        "chain netdev c",
        "rule netdev c update @s { ip saddr }",
    ],
}

_HANDOVER: Final[Mapping[str, Sequence[str]]] = {
    "copies of packets (CONFIG_NFT_DUP_IPV4)": ["chain ip c", "rule ip c dup to 192.0.2.1"],
    "copies of IPv6 packets (CONFIG_NFT_DUP_IPV6)": ["chain ip6 c", "rule ip6 c dup to 2001:db8::1"],
}


def find(run: Script = ruleset.run) -> Features:
    """Ask the kernel, in the namespace of this thread, on whose link the hooks stand."""
    return Features(
        nat=_lacking(run, _NAT, "nothing can be forwarded"),
        dsr=_lacking(run, _DSR, "mode dsr can't work"),
        handover=_lacking(run, _HANDOVER, "connections of mode nat end when an address moves to this host"),
    )


def _lacking(run: Script, features: Mapping[str, Sequence[str]], so: str) -> str:
    found = {name: said for name, lines in features.items() if (said := _refusal(run, lines))}
    if not found:
        return ""
    why = f"load the module, or take a kernel that has it ({next(iter(found.values()))})"
    return f"this kernel lacks {', '.join(found)}, so {so}: {why}"


def _refusal(run: Script, lines: Sequence[str]) -> str:
    """What the kernel, or libnftables, said against a script; "" for nothing."""
    family = lines[0].split()[1]
    script = [f"add table {family} {_PROBE}"]
    for line in lines:
        kind, _, rest = line.split(" ", 2)
        script.append(f"add {kind} {family} {_PROBE} {rest}")
    script.append(f"delete table {family} {_PROBE}")
    try:
        run("\n".join(script) + "\n")
    except DataPlaneError as err:
        return str(err)
    return ""
