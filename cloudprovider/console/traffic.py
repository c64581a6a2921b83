"""What went through a load balancer, from the metrics of the agent that holds its address.

The console asks the agents by itself, as they know no users: so nobody is shown a counter but of a load balancer that
they have just read with their own token, and the node's name, which an object says, can only ever be a host's name.
"""

import asyncio
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import aiohttp

from cloudprovider.console import bounds
from cloudprovider.core.metrics.agent import CLIENT_BYTES, CLIENT_PACKETS

SECONDS: Final = 2.0
MOST_BYTES: Final = 8 * 1024 * 1024
KEPT_SECONDS: Final = 2.0
"""One answer serves everybody who looks at that moment."""
MOST_NODES: Final = 256

_LINE: Final = re.compile(
    rf"^(?P<what>{CLIENT_PACKETS.name}|{CLIENT_BYTES.name})"
    r'\{[^}]*load_balancer="(?P<name>[^"]+)"[^}]*\} (?P<n>[\d.e+]+)$',
    re.M,
)


@dataclass(frozen=True)
class Counters:
    """From clients, since the agent's namespace was made."""

    packets: int = 0
    bytes: int = 0


@dataclass(frozen=True)
class Traffic:
    """``counters`` None: not known, and ``problem`` says why. ``rate``: bytes a second since the look before; None:
    this is the first."""

    counters: Counters | None = None
    rate: float | None = None
    problem: str = ""


@dataclass(frozen=True)
class _Look:
    time: float
    counters: Mapping[str, Counters]
    problem: str


class TrafficReader:
    """Reads agents' metrics. In ``url`` ``{node}`` stands for the node's name; empty: none; ``time`` is monotonic."""

    def __init__(self, url: str, time: Callable[[], float]) -> None:
        self._url = url
        self._time = time
        self._looks: dict[str, tuple[_Look, _Look | None]] = {}
        self._locks: dict[str, asyncio.Lock] = {}

    async def of(self, node: str, name: str) -> Traffic:
        """Return what went through the load balancer ``name`` ("namespace/name"), which ``node`` holds."""
        if not self._url:
            return Traffic(problem="This console is not told where the agents' metrics are (--agent-metrics).")
        if not node:
            return Traffic(problem="No host holds its address.")
        if len(node) > 253 or not re.fullmatch(bounds.DNS_SUBDOMAIN, node):
            return Traffic(problem=f'"{node[:80]}" is no host\'s name.')
        look, before = await self._look(node)
        if look.problem:
            return Traffic(problem=look.problem)
        now = look.counters.get(name, Counters())
        rate = None
        if before is not None and not before.problem and look.time > before.time:
            rate = max(0.0, (now.bytes - before.counters.get(name, Counters()).bytes) / (look.time - before.time))
        return Traffic(now, rate)

    async def _look(self, node: str) -> tuple[_Look, _Look | None]:
        async with self._locks.setdefault(node, asyncio.Lock()):
            known = self._looks.pop(node, None)
            if known is None or self._time() - known[0].time >= KEPT_SECONDS:
                counters, problem = await self._read(node)
                known = (_Look(self._time(), counters, problem), known[0] if known is not None else None)
            self._looks[node] = known
            while len(self._looks) > MOST_NODES:
                self._looks.pop(next(iter(self._looks)))
        if len(self._locks) > MOST_NODES:
            self._locks = {n: lock for n, lock in self._locks.items() if lock.locked()}
        return known

    async def _read(self, node: str) -> tuple[Mapping[str, Counters], str]:
        timeout = aiohttp.ClientTimeout(total=SECONDS)
        try:
            async with (
                aiohttp.ClientSession(timeout=timeout, trust_env=False) as session,
                session.get(self._url.replace("{node}", node), allow_redirects=False) as response,
            ):
                if response.status != 200:
                    return {}, f"The agent on {node} answers with {response.status}."
                body = b""
                async for chunk in response.content.iter_chunked(65536):
                    body += chunk
                    if len(body) > MOST_BYTES:
                        return {}, f"The metrics of the agent on {node} are too large to read."
        except (aiohttp.ClientError, OSError, ValueError):
            return {}, f"The agent on {node} can't be asked now."
        return parse(body.decode(errors="replace")), ""


def parse(text: str) -> Mapping[str, Counters]:
    """Read the counters of all load balancers from Prometheus' text format; networks are added up."""
    found: dict[str, Counters] = {}
    for match in _LINE.finditer(text):
        before, count = found.get(match["name"], Counters()), int(float(match["n"]))
        if match["what"] == CLIENT_PACKETS.name:
            found[match["name"]] = Counters(before.packets + count, before.bytes)
        else:
            found[match["name"]] = Counters(before.packets, before.bytes + count)
    return found
