"""The packet mark: which group a listener's packets go to, and what is to be looked at on the way.

Eight bits of flags over 24 bits of group number. A *step* says for what a packet looks up its group's chain; the
elements of that look-up say what a group does at that step now (see :mod:`cloudprovider.dataplane.ruleset_dsr`).
"""

from enum import IntEnum
from typing import Final

GROUP: Final = 0x00FF_FFFF
"""The group."""
BY_CLIENT: Final = 0x8000_0000
"""Choose by the client's address alone."""
RESTRICTED: Final = 0x4000_0000
"""Look at source ranges."""
TRACKED: Final = 0x2000_0000
"""The listener has flows that are pinned to their node."""
MOVED: Final = 0x1000_0000
"""The listener's flows that are under way go where its former choice says, and are pinned."""
OLD: Final = 0x0800_0000
"""In a slot's key: the table of the group's former members."""
STEP: Final = 0x0700_0000
"""See :class:`Step`."""
CHOICE: Final = GROUP | BY_CLIENT
"""All that a choice of node depends on."""


class Step(IntEnum):
    """For what a packet looks up its group's chain."""

    BEGIN = 0x0100_0000
    """A TCP flow begins."""
    GOING = 0x0200_0000
    """A TCP flow is under way and not pinned."""
    DATAGRAM = 0x0300_0000
    """UDP, not pinned (or to a node that has left)."""
    JOIN = 0x0400_0000
    """A TCP flow begins at a listener that has moved to this group."""
    LEAVE = 0x0500_0000
    """A TCP flow of a listener that has moved from this group is under way and not pinned."""
    FRAGMENT = 0x0600_0000
    """A part of a datagram, which has no ports."""
    ERROR = 0x0700_0000
    """An ICMP error about a flow."""


def choice(group: int, *, by_client: bool) -> int:
    """The mark that says where to go, without flags."""
    return group | BY_CLIENT * by_client
