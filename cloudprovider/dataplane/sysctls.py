"""The settings of a namespace, made from inside it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from cloudprovider.core.errors import DataPlaneError
from cloudprovider.dataplane.naming import LINK

_ROOT: Final = Path("/proc/sys")

IPV4: Final = {
    "net/ipv4/ip_forward": "1",
    # A node that calls a VIP of its own comes and goes by the same link: without this it is told a "better" way.
    "net/ipv4/conf/all/send_redirects": "0",
    f"net/ipv4/conf/{LINK}/send_redirects": "0",
    "net/ipv4/conf/all/accept_redirects": "0",
    # Clients come from anywhere; the one link is the right one for all of them.
    "net/ipv4/conf/all/rp_filter": "0",
    f"net/ipv4/conf/{LINK}/rp_filter": "0",
    # Answer ARP for what stands on the link, and never ask with a VIP as the sender's address.
    "net/ipv4/conf/all/arp_ignore": "1",
    "net/ipv4/conf/all/arp_announce": "2",
    # A packet out of its window is the two ends' business, not a reason to cut the flow.
    "net/netfilter/nf_conntrack_tcp_be_liberal": "1",
    # A day, as kube-proxy has it, not the kernel's five.
    "net/netfilter/nf_conntrack_tcp_timeout_established": "86400",
    # What is refused, the rules bound; the kernel's bound of one a second for each client would make others wait who
    # share its address.
    "net/ipv4/icmp_ratelimit": "0",
}
IPV6: Final = {
    "net/ipv6/conf/all/forwarding": "1",
    # A VIP is looked for before it is brought up, and nobody else is asked for an address: no autoconfiguration, no
    # routes of somebody's choice, no waiting for the link-local address (the one address of the namespace's own).
    f"net/ipv6/conf/{LINK}/accept_ra": "0",
    f"net/ipv6/conf/{LINK}/autoconf": "0",
    f"net/ipv6/conf/{LINK}/accept_redirects": "0",
    "net/ipv6/conf/all/accept_dad": "0",
    f"net/ipv6/conf/{LINK}/accept_dad": "0",
    # As for IPv4. And here redirects count for it that the rules then drop: who has just been served, and is refused
    # something, would not hear of it.
    "net/ipv6/icmp/ratelimit": "0",
    # As IPv4's do.
    f"net/ipv6/conf/{LINK}/keep_addr_on_down": "1",
    f"net/ipv6/conf/{LINK}/disable_ipv6": "0",
}
"""To be written before the link comes up, in this order."""


def write(values: Mapping[str, str]) -> None:
    """Write settings of the namespace of this thread. Raises DataPlaneError."""
    for name, value in values.items():
        try:
            (_ROOT / name).write_text(value, encoding="ascii")
        except OSError as error:
            raise DataPlaneError(
                f"can't set sysctl {name.replace('/', '.')} to {value}: {error.strerror}; "
                "the agent needs a writable /proc/sys",
                errno=error.errno or 0,
            ) from error


def has_ipv6(link: str) -> bool:
    """Whether a link of this thread's namespace can have IPv6: the kernel has it, and the MTU is 1280 or more."""
    return (_ROOT / "net/ipv6/conf" / link / "disable_ipv6").exists()


def silence_ipv6(link: str) -> None:
    """Have no IPv6 on a link of this thread's namespace, where there is any. Raises DataPlaneError."""
    if has_ipv6(link):
        write({f"net/ipv6/conf/{link}/disable_ipv6": "1"})
