"""``kubectl_complete-lb``: what kubectl (1.26 and later) asks for completions of ``kubectl lb``.

It calls with the words typed so far, the last one perhaps unfinished, and reads one completion a line; a tab sets a
description apart, and a last line ":4" says that these are no files (cobra's ShellCompDirectiveNoFileComp).
"""

import argparse
import asyncio
import sys
from collections.abc import Sequence
from typing import Final, TextIO

from cloudprovider.cli.kubectl.main import build_parser, now
from cloudprovider.cli.kubectl.screen import Progress
from cloudprovider.cli.kubectl.session import NothingThere, Refused, Session, opened
from cloudprovider.core.errors import CloudProviderError
from cloudprovider.kube.resources import IPPOOLS, LOADBALANCERS, NAMESPACES, NODES, SERVICES, VIRTUAL_MACHINE_INSTANCES

NO_FILES: Final = ":4"
PATIENCE: Final = 3.0
"""Seconds that somebody who has pressed Tab waits at most."""
_ONE_WORD: Final = frozenset({"explain", "drain"})


def main(arguments: Sequence[str] | None = None, out: TextIO = sys.stdout) -> int:
    """Print what may come next. Nothing is ever wrong here: then there is just nothing to offer."""
    words = list(sys.argv[1:] if arguments is None else arguments) or [""]
    for line in offered(words):
        print(line, file=out)
    print(NO_FILES, file=out)
    return 0


def offered(words: Sequence[str]) -> list[str]:
    """The completions of the last word."""
    *before, last = words
    subcommands = _subcommands()
    command = next((w for w in before if w in subcommands), None)
    if command is None:
        return [f"{name}\t{text}" for name, text in subcommands.items() if name.startswith(last)]
    previous = before[-1]
    if previous in ("-o", "--output"):
        return [word for word in ("json", "yaml") if word.startswith(last)]
    if last.startswith("-"):
        return [flag for flag in _flags(command) if flag.startswith(last)]
    if previous in ("--kubeconfig", "--context"):
        return []
    wanted = "namespaces" if previous in ("-n", "--namespace") else command
    try:
        return [n for n in asyncio.run(_names(wanted, before)) if n.startswith(last)]
    except (CloudProviderError, Refused, NothingThere, TimeoutError, OSError):
        return []


async def _names(wanted: str, words: Sequence[str]) -> list[str]:
    given = {key: _after(words, *flags) for key, flags in _GIVEN.items()}
    progress = Progress(sys.stderr, patience=60.0)
    async with asyncio.timeout(PATIENCE), opened(**given, everywhere=False, progress=progress, clock=now) as session:
        return sorted(await _found(session, wanted))


_GIVEN: Final = {
    "kubeconfig": ("--kubeconfig",),
    "context": ("--context",),
    "namespace": ("-n", "--namespace"),
}


async def _found(session: Session, wanted: str) -> list[str]:
    if wanted == "namespaces":
        return [n.metadata.name for n in await session.all(NAMESPACES, wanted)]
    guest = session.side == "guest"
    if wanted == "pools" and not guest:
        return [p.metadata.name for p in await session.all(IPPOOLS, wanted)]
    if wanted == "explain" and guest:
        return [s.metadata.name for s in await session.all(SERVICES, wanted) if s.spec.type == "LoadBalancer"]
    if wanted == "explain":
        return [x.metadata.name for x in await session.all(LOADBALANCERS, wanted)]
    if wanted == "drain":
        if guest:
            return [n.metadata.name for n in await session.all(NODES, wanted)]
        return [m.metadata.name for m in await session.all(VIRTUAL_MACHINE_INSTANCES, wanted)]
    if wanted == "trace" and not guest:
        session.everywhere = True
        balancers = await session.all(LOADBALANCERS, wanted)
        return [
            f"{f'[{a.ip}]' if ':' in a.ip else a.ip}:{x.port}" + ("" if x.protocol == "TCP" else f"/{x.protocol}")
            for lb in balancers
            for a in lb.status.addresses
            for x in lb.spec.listeners
        ]
    return []


def _subcommands() -> dict[str, str]:
    parser = build_parser()
    (action,) = (a for a in parser._actions if isinstance(a, argparse._SubParsersAction))  # noqa: SLF001 - no other way
    return {choice.dest: choice.help or "" for choice in action._choices_actions}  # noqa: SLF001


def _flags(command: str) -> list[str]:
    (action,) = (a for a in build_parser()._actions if isinstance(a, argparse._SubParsersAction))  # noqa: SLF001
    return sorted(f for a in action.choices[command]._actions for f in a.option_strings if f.startswith("--"))  # noqa: SLF001


def _after(words: Sequence[str], *flags: str) -> str:
    """The value of a flag among the words, "--flag value" or "--flag=value"."""
    for i, word in enumerate(words):
        if word in flags and i + 1 < len(words):
            return words[i + 1]
        for flag in flags:
            if word.startswith(f"{flag}="):
                return word.removeprefix(f"{flag}=")
    return ""


if __name__ == "__main__":
    sys.exit(main())
