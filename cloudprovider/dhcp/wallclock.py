"""Leases between two clocks: monotonic seconds inside, which nobody sets; dates for everybody else."""

import math
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Final

from cloudprovider.dhcp.api import Lease
from cloudprovider.dhcp.terms import REBIND_SHARE, RENEW_SHARE, Terms

_TOLERANCE: Final = timedelta(seconds=1)


class WallClock:
    """Translates times. The two clocks are compared again only where they have come apart by more than a second, so
    that a moment keeps its date, and whoever compares states sees no difference where there is none."""

    def __init__(self, now: Callable[[], datetime], monotonic: Callable[[], float]) -> None:
        self._now = now
        self._monotonic = monotonic
        self._origin = self._measure()
        """The date of monotonic time 0."""

    def wall(self, moment: float) -> datetime:
        """The date of a finite moment, to the millisecond. One beyond all dates is the last of them."""
        measured = self._measure()
        if abs(measured - self._origin) > _TOLERANCE:
            self._origin = measured
        try:
            date = self._origin + timedelta(milliseconds=round(moment * 1000))
        except OverflowError:
            return datetime.max.replace(tzinfo=self._origin.tzinfo)
        return date

    def lease(self, terms: Terms) -> Lease:
        """The lease with dates."""
        return Lease(
            address=terms.address,
            prefix_length=terms.prefix_length,
            gateway=terms.gateway,
            server=terms.server,
            acquired_at=self.wall(terms.acquired),
            renew_at=self._ending(terms.renew),
            rebind_at=self._ending(terms.rebind),
            expires_at=self._ending(terms.expires),
        )

    def terms(self, lease: Lease) -> Terms:
        """The terms of a lease that somebody kept; times that make no order are set anew."""
        acquired, expires = self._moment(lease.acquired_at), self._moment(lease.expires_at)
        renew, rebind = self._moment(lease.renew_at), self._moment(lease.rebind_at)
        if expires != math.inf and not acquired <= renew < rebind < expires:
            acquired = min(acquired, expires)
            renew = acquired + (expires - acquired) * RENEW_SHARE
            rebind = acquired + (expires - acquired) * REBIND_SHARE
        return Terms(
            address=lease.address,
            prefix_length=lease.prefix_length,
            gateway=lease.gateway,
            server=lease.server,
            server_mac=b"",
            acquired=acquired,
            renew=renew,
            rebind=rebind,
            expires=expires,
        )

    def _measure(self) -> datetime:
        date = self._now() - timedelta(seconds=self._monotonic())
        return date.replace(microsecond=date.microsecond // 1000 * 1000)

    def _ending(self, moment: float) -> datetime | None:
        return self.wall(moment) if moment != math.inf else None

    def _moment(self, date: datetime | None) -> float:
        return (date - self._origin).total_seconds() if date is not None else math.inf
