"""What is wrong with a lease, as a sentence: what, where, and what to do."""

from collections.abc import Callable
from datetime import datetime
from ipaddress import IPv4Address

from cloudprovider.core.times import rfc3339
from cloudprovider.dhcp.api import Problem
from cloudprovider.dhcp.effects import Reason, Trouble


def problem(
    trouble: Trouble,
    *,
    network: str,
    wall: Callable[[float], datetime],
    answering: IPv4Address | None = None,
    unsent: str = "",
) -> Problem:
    """The problem that a trouble is on a network.

    ``wall``: the wall clock's time for a monotonic one. ``answering``: a server that has answered others since the
    trouble began. ``unsent``: why the link takes no frames, "" where it does. The sentence holds no growing times,
    so that it changes only where something has changed.
    """
    reason = trouble.reason
    if reason is Reason.NO_ANSWER and unsent:
        reason = Reason.SEND_FAILED
    elif reason is Reason.NO_ANSWER and trouble.address is None and answering is not None:
        reason = Reason.NO_OFFER
    where = f"network {network!r}" if network else "the management network"
    since = _moment(wall(trouble.since))
    text = _sentence(reason, trouble, where=where, since=since, answering=answering, unsent=unsent)
    if reason is not Reason.LEASE_EXPIRED and trouble.expires is not None:
        text += _until(trouble, wall)
    return Problem(reason=reason, message=text)


def _sentence(
    reason: Reason, trouble: Trouble, *, where: str, since: str, answering: IPv4Address | None, unsent: str
) -> str:
    address, server, detail = trouble.address, trouble.server, trouble.detail
    match reason:
        case Reason.NO_ANSWER if address is None:
            return (
                f"no DHCP server has answered on {where} since {since}; is there one, and does it serve this network?"
            )
        case Reason.NO_ANSWER:
            return (
                f"DHCP server {server} on {where} has not confirmed {address} since {since}; does it run, and can it "
                "be reached?"
            )
        case Reason.NO_OFFER:
            return (
                f"DHCP server {answering} answers others on {where}, but nobody has offered an address since {since}; "
                "is its range full, or limited to known clients?"
            )
        case Reason.SEND_FAILED:
            return f"DHCP can't send on {where}: {unsent}; bring its device up on this host"
        case Reason.REFUSED:
            words = f' and says "{detail}"' if detail else ""
            return (
                f"DHCP server {server} on {where} refuses {address}{words}; another address is asked for; has its "
                "range changed?"
            )
        case Reason.ADDRESS_CONFLICT:
            return (
                f"{detail} has {address} already, which DHCP server {server} on {where} offers; another address is "
                "asked for; give that host another address, or take this one out of the server's range"
            )
        case Reason.LEASE_EXPIRED:
            return (
                f"the lease for {address} on {where} has expired: DHCP server {server} has not renewed it since "
                f"{since}; it is asked for again; does the server run, and can it be reached?"
            )
        case Reason.INVALID_OFFER:
            return (
                f"what DHCP server {server} on {where} offers ({address}) can't be used: {detail}; correct the "
                "server's configuration"
            )
        case Reason.PROBE_FAILED:
            return (
                f"whether somebody on {where} already has {address}, which DHCP server {server} offers, can't be found "
                f"out: {detail}; it is tried again"
            )


def _until(trouble: Trouble, wall: Callable[[float], datetime]) -> str:
    if trouble.expires is None or trouble.expires == float("inf"):
        return "; the address stays in use: its lease has no end"
    return f"; the address stays in use until the lease ends at {_moment(wall(trouble.expires))}"


def _moment(when: datetime) -> str:
    return rfc3339(when)
