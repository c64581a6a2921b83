"""What a host's own settings put in the way of traffic that only passes through it, in sentences for people."""

from pathlib import Path
from typing import Final

from cloudprovider.dataplane.rtnetlink import Link

_SYSCTLS: Final = Path("/proc/sys/net/bridge")
_FAMILIES: Final = {"bridge-nf-call-iptables": "nf_call_iptables", "bridge-nf-call-ip6tables": "nf_call_ip6tables"}
"""Switches that send bridged frames through the host's firewall: for all bridges (kernel document
networking/ip-sysctl, br_netfilter), and the bridge's own, of which one is enough."""


def of_dsr(device: Link, sysctls: Path = _SYSCTLS) -> str:
    """Why frames that are passed on in mode ``dsr`` would be lost on this host; "" where nothing stands in the way.

    Their answers take another way: the host's conntrack sees one side of each connection and calls it invalid, and
    kube-proxy's rules drop that. The settings are those of this thread's namespace; br_netfilter not loaded: none.
    """
    if device.kind != "bridge":
        return ""
    found: list[str] = []
    remedy: list[str] = []
    for everywhere, own in _FAMILIES.items():
        if _is_on(sysctls / everywhere):
            found.append(f"net.bridge.{everywhere} is 1")
            remedy.append(f"sysctl -w net.bridge.{everywhere}=0")
        if own in device.firewalled:
            found.append(f"{own} of {device.name} is 1")
            remedy.append(f"ip link set {device.name} type bridge {own} 0")
    if not found:
        return ""
    return (
        f"{' and '.join(found)} on this host: its firewall takes frames that mode dsr passes on for invalid and drops "
        f"them; run {', '.join(remedy)} and restart the agent, or use mode nat"
    )


def of_the_host(device: Link) -> str:
    """Why the host itself can't reach the VIPs of the network; "" where it can."""
    if device.kind == "bridge":
        return ""
    return (
        f"{device.name} is no bridge: the VIPs stand on a macvlan of it, which this host itself can't reach (others "
        "on the network can); to reach them from here too, make a bridge, put the device into it, and name the bridge"
    )


def _is_on(switch: Path) -> bool:
    try:
        return switch.read_text(encoding="ascii").strip() == "1"
    except OSError:
        return False
