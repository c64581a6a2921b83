"""Jittered exponential backoff, the same everywhere."""

import random
from dataclasses import dataclass


@dataclass(frozen=True)
class Backoff:
    """Seconds to wait after the n-th failure in a row: ``base`` doubled each time up to ``limit``, then drawn evenly
    from its upper half ("equal jitter": never at once, never all clients together)."""

    base: float
    limit: float

    def delay(self, failures: int, rng: random.Random) -> float:
        """Seconds to wait after ``failures`` failures in a row (1 for the first)."""
        # The exponent is bounded because 2.0 ** 1024 overflows.
        full = min(self.limit, self.base * 2.0 ** min(max(failures, 1) - 1, 64))
        return rng.uniform(full / 2, full)
