"""What the agent counts, in Prometheus' text format."""

from collections.abc import Mapping

from cloudprovider.dhcp.api import Counts

_MESSAGES = "cloudprovider_agent_dhcp_messages_total"
_DROPPED = "cloudprovider_agent_dhcp_dropped_total"


def exposition_of_dhcp(counts: Mapping[str, Counts]) -> str:
    """Return what the DHCP clients sent, received and dropped, by network."""
    lines = [f"# HELP {_MESSAGES} DHCP messages.", f"# TYPE {_MESSAGES} counter"]
    for network, count in sorted(counts.items()):
        for direction, messages in (("received", count.received), ("sent", count.sent)):
            lines += [
                f'{_MESSAGES}{{network="{network}",direction="{direction}",type="{kind}"}} {number}'
                for kind, number in sorted(messages.items())
            ]
    lines += [
        f"# HELP {_DROPPED} DHCP packets not taken (malformed, or asked for by nobody here) or not sent.",
        f"# TYPE {_DROPPED} counter",
    ]
    lines += [
        f'{_DROPPED}{{network="{network}",reason="{reason}"}} {number}'
        for network, count in sorted(counts.items())
        for reason, number in sorted(count.dropped.items())
    ]
    return "\n".join(lines) + "\n"
