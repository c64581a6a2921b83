"""Bringing a kernel in line with a plan, whole: at start, after a refusal, after somebody else's changes."""

import asyncio
import errno
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from cloudprovider.core.errors import DataPlaneError
from cloudprovider.core.plan import Changes, ListenerKey, Plan, chunks, diff
from cloudprovider.dataplane.api import Engine

CHUNK: Final = 500
"""Forwards in one transaction."""

_UNFIT: Final = frozenset({errno.EINVAL, errno.ENOENT, errno.EADDRNOTAVAIL})
"""What the engine says of a change that can't be carried out whatever the kernel's state: the others still can."""


@dataclass(frozen=True)
class Repair:
    """What was different, and what of it could not be mended, with the reason. ``rules``: the static ones were, too."""

    changes: Changes
    rules: bool
    refused: Mapping[ListenerKey, str] = field(default_factory=dict)


async def bring_in_line(engine: Engine, want: Plan, have: Plan | None = None) -> Repair:
    """Make the kernel be as wanted, with a yield to the event loop now and then. ``have``: what was last observed, to
    be believed if nobody has changed it since; None: nothing, or not to be believed.

    One listener or group that the engine refuses keeps no other one from its place. Raises DataPlaneError where the
    kernel can't do it now.
    """
    broken = not await engine.intact()
    if broken:
        await engine.start()
    if have is None or broken or not await engine.undisturbed():
        have = await engine.observe()
    changes = diff(have, want)
    refused: dict[ListenerKey, str] = {}
    lacking: dict[int, str] = {}
    for part in chunks(changes, CHUNK):
        try:
            await engine.apply(part)
        except DataPlaneError as err:
            if err.errno not in _UNFIT:
                raise
            lacking.update(dict.fromkeys((g for g, group in part.groups.items() if group is not None), str(err)))
            refused.update(await _one_by_one(engine, part, lacking))
        await asyncio.sleep(0)  # others' turn: a whole table takes a while
    return Repair(changes, broken, refused)


async def _one_by_one(engine: Engine, part: Changes, lacking: Mapping[int, str]) -> dict[ListenerKey, str]:
    refused: dict[ListenerKey, str] = {}
    for key, forward in part.forwards.items():
        try:
            await engine.apply(Changes(forwards={key: forward}))
        except DataPlaneError as err:
            if err.errno not in _UNFIT:
                raise
            refused[key] = lacking.get(forward.group, str(err)) if forward is not None else str(err)
    return refused
