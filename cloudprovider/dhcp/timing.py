"""How long a DHCP client waits for what, in seconds: RFC 2131's values, shorter only in tests."""

import random
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Timing:
    """The waits of one lease.

    RFC 2131 section 4.4.1 also wants one to ten seconds of waiting before the first DISCOVER, so that machines that
    start together do not all call at once: the pacing of the link takes that place.
    """

    first: float = 4.0
    """Until the first retransmission; doubled for each further one up to ``longest`` (section 4.1)."""
    longest: float = 64.0
    jitter: float = 1.0
    """Each wait is this much shorter or longer at most."""
    tries: int = 4
    """Transmissions of a REQUEST until it is given up (section 3.1, step 5: 60 s in all)."""
    renewal_floor: float = 60.0
    """Least wait between renewals (section 4.4.5); shorter where the lease leaves less than four times that."""
    decline_wait: float = 10.0
    """After a DECLINE (section 3.1, step 5)."""
    better_offer: float = 1.0
    """How long an offer waits for another one with the address that was had before."""
    foreign_nak: float = 1.0
    """How long the refusal of a server that did not give the lease waits for the word of the one that did."""
    probe_limit: float = 10.0
    """What a conflict probe may take."""

    def retransmission(self, attempts: int, rng: random.Random) -> float:
        """Seconds to wait after the n-th transmission (1 for the first)."""
        full = min(self.longest, self.first * 2.0 ** min(attempts - 1, 16))
        return max(full + rng.uniform(-self.jitter, self.jitter), self.first / 4)

    def renewal(self, remaining: float, span: float, rng: random.Random) -> float:
        """Seconds to wait after a renewal's transmission: half of what remains until T2 (or expiry).

        ``span``: from T1 to T2 (or T2 to expiry). The RFC's least wait of a minute would leave a lease of 20 s
        without a second try, so it shrinks to a quarter of the span.
        """
        return max(remaining / 2, min(self.renewal_floor, span / 4)) * rng.uniform(0.9, 1.1)
