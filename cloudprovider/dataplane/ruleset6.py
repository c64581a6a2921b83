"""The static rules for IPv6, in nft(8)'s language: a VIP is announced and answers ping, and refuses all else.

They say of IPv6 what :mod:`cloudprovider.dataplane.ruleset` says of an IPv4 packet that is for no listener. Neighbor
Discovery passes (without it nobody finds the VIP), and the questions of multicast routers (a switch that snoops would
stop delivering Neighbor Solicitations to an address whose group it does not know of).
"""

from typing import Final

from cloudprovider.dataplane.ruleset import RESETS_PER_SECOND, TABLE

CHAINS: Final = {
    "forward": ["type filter hook forward priority filter; policy drop;"],
    "input": [
        "type filter hook input priority filter; policy drop;",
        'iif "lo" accept',
        "icmpv6 type { nd-router-solicit, nd-router-advert, nd-redirect } accept",  # and ignored: see sysctls
        "icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert, mld-listener-query } accept",
        "ct state established,related accept",
        "ct state invalid drop",
        "icmpv6 type echo-request accept",
        f"limit rate {RESETS_PER_SECOND}/second burst {RESETS_PER_SECOND} packets jump refuse",
    ],
    "refuse": [
        "meta l4proto tcp reject with tcp reset",
        "meta l4proto udp reject with icmpv6 type port-unreachable",
    ],
}
"""Every chain with its rules."""


def script() -> str:
    """The whole as nft commands that replace what is there: no element is lost, for there is none."""
    lines = [f"add table ip6 {TABLE}", f"delete table ip6 {TABLE}", f"add table ip6 {TABLE}"]
    for name, rules in CHAINS.items():
        hook = f" {{ {rules[0]} }}" if rules[0].startswith("type ") else ""
        lines.append(f"add chain ip6 {TABLE} {name}{hook}")
    for name, rules in CHAINS.items():
        lines += [f"add rule ip6 {TABLE} {name} {rule}" for rule in rules if not rule.startswith("type ")]
    return "\n".join(lines) + "\n"
