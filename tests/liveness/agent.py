"""A program that watches as an agent does, until SIGTERM: ``agent.py NAMESPACE DIRECTORY OWN NAME=ADDRESS...``."""

import asyncio
import contextlib
import signal
import socket
import sys
from collections.abc import Callable
from ipaddress import ip_address
from pathlib import Path

from cloudprovider.dataplane.namespace import call_in
from cloudprovider.liveness.bfd import BfdWatch
from tests.liveness.world import PACE


async def main(namespace: str, directory: str, own: str, *others: str) -> None:
    async def inside(make: Callable[[str], socket.socket]) -> socket.socket:
        return call_in(Path(namespace), lambda: make("eth0"))

    watch = BfdWatch("", [ip_address(own)], inside, pace=PACE, directory=Path(directory))
    watch.follow({name: ip_address(address) for name, address in (other.split("=") for other in others)})
    task = asyncio.create_task(watch.run())
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    with contextlib.suppress(asyncio.CancelledError):
        await task


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
