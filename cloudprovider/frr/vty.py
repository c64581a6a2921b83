"""What is said to a daemon of FRR on its vty socket, as vtysh does: a command and a NUL; the answer is text, then three
NULs and one byte, 0 where it was taken. Source: lib/vty.c (vtysh_read, vtysh_flush) of FRR 8.4."""

import asyncio
from collections.abc import Iterable
from typing import Final

from cloudprovider.frr.daemon import Connection, DaemonError

_END: Final = b"\0\0\0"
_TAKEN: Final = frozenset({0, 1})
"""CMD_SUCCESS, and CMD_WARNING: it is as it was asked for already, or what is removed was not there."""
_LONGEST: Final = 64 * 1024 * 1024
"""Bytes of an answer. The configuration of 10,000 addresses is 0.6 MB."""
_SECRET: Final = " password "  # noqa: S105 - none


class Vty:
    """One conversation. ``deadline``: seconds for each command."""

    def __init__(self, connection: Connection, *, deadline: float = 5.0) -> None:
        self._connection = connection
        self._deadline = deadline

    async def say(self, command: str) -> str:
        """Say one command; return what is answered. Raises DaemonError where it is refused, or nothing comes."""
        try:
            async with asyncio.timeout(self._deadline):
                text, status = await self._say(command)
        except TimeoutError:
            raise DaemonError(f"no answer to '{_told(command)}' for {self._deadline} s") from None
        except OSError as error:
            raise DaemonError(f"can't say '{_told(command)}': {error}") from error
        if status not in _TAKEN:
            raise DaemonError(f"'{_told(command)}' is refused: {_told(' '.join(text.split()))}")
        return text

    async def configure(self, commands: Iterable[str]) -> None:
        """Say commands in the mode of configuration, one after the other. Raises DaemonError; what came before the one
        that was refused is in force then."""
        await self.say("configure terminal")
        for command in commands:
            await self.say(command)
        await self.say("end")

    async def _say(self, command: str) -> tuple[str, int]:
        self._connection.writer.write(command.encode() + b"\0")
        await self._connection.writer.drain()
        found = bytearray()
        while not (len(found) > len(_END) and found[-len(_END) - 1 : -1] == _END):
            received = await self._connection.reader.read(65536)
            if not received:
                raise DaemonError("it has ended")
            found += received
            if len(found) > _LONGEST:
                raise DaemonError(f"the answer to '{_told(command)}' has no end")
        return found[: -len(_END) - 1].decode(errors="replace"), found[-1]


def _told(command: str) -> str:
    """A command as it may be told: without a password."""
    before, secret, _ = command.partition(_SECRET)
    return f"{before}{secret}..." if secret else command
