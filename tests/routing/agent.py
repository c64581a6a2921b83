"""A program that speaks as an agent does, until SIGTERM: ``agent.py NAMESPACE DIRECTORY ROUTER VIP``."""

import asyncio
import contextlib
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path

from cloudprovider.core.bgp import Attributes
from cloudprovider.dataplane.namespace import call_in
from cloudprovider.routing.bgpd import BgpSpeaker
from tests.routing.world import PACE, neighbor, speech


async def main(namespace: str, directory: str, router: str, vip: str) -> None:
    async def inside(make: Callable[[str], socket.socket]) -> socket.socket:
        return call_in(Path(namespace), lambda: make("eth0"))

    speaker = BgpSpeaker("", inside, pace=PACE, directory=Path(directory))
    speaker.speak(speech(neighbor("tor", router), routes={vip: {"tor": Attributes()}}))
    task = asyncio.create_task(speaker.run())
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    with contextlib.suppress(asyncio.CancelledError):
        await task


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
