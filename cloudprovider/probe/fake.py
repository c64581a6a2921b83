"""The shipped fake of the seam in :mod:`cloudprovider.probe.api`: targets that answer as they are told."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

from cloudprovider.core.health import Answer, Outcome
from cloudprovider.probe.api import Target
from cloudprovider.probe.prober import exchange_of


@dataclass
class FakeTargets:
    """The world that is probed."""

    answers: dict[Target, Outcome] = field(default_factory=dict)
    """Who is not among them is silent, which takes the whole timeout."""
    asked: list[Target] = field(default_factory=list)
    """Everybody who was asked, in order."""
    open: int = 0
    """Probes under way."""
    most_open: int = 0


class FakeProber:
    """See :class:`~cloudprovider.probe.api.Prober`."""

    def __init__(self, targets: FakeTargets) -> None:
        self.targets = targets
        self._timers: set[asyncio.TimerHandle] = set()
        self._closed = False

    async def begin(self, target: Target, timeout: float, done: Callable[[Answer], None]) -> None:
        """See :class:`~cloudprovider.probe.api.Prober`."""
        if timeout <= 0:
            raise ValueError(f"a probe needs a timeout above 0 s: {timeout}")
        if self._closed:
            raise RuntimeError("the prober is closed")
        targets = self.targets
        targets.asked.append(target)
        targets.open += 1
        targets.most_open = max(targets.most_open, targets.open)
        outcome = targets.answers.get(target, Outcome.SILENT)
        answer = Answer(outcome, "" if outcome is Outcome.GOOD else f"the fake says {outcome.value}")
        try:
            exchange_of(target)
        except ValueError as error:
            answer = Answer(Outcome.BAD, str(error))

        def end() -> None:
            self._timers.discard(timer)
            targets.open -= 1
            done(answer)

        delay = timeout if answer.outcome is Outcome.SILENT else 0.0
        timer = asyncio.get_running_loop().call_later(delay, end)
        self._timers.add(timer)

    def close(self) -> None:
        """See :class:`~cloudprovider.probe.api.Prober`."""
        self._closed = True
        while self._timers:
            self._timers.pop().cancel()
            self.targets.open -= 1
