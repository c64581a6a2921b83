"""Nodes that did not know an address yet are made to forget the connections that they sent back.

Who creates a Service often connects the moment it shows its address, some tenths of a second before the guest's
kube-proxies know it. A node then routes the SYN back, and its conntrack remembers the flow as one that is routed: every
further SYN of that connection would go the same way, long after kube-proxy knows the address, and the client would wait
for minutes. So each SYN that comes back is answered to the node by a reset that only its conntrack heeds
(:mod:`~cloudprovider.dataplane.resets`), and the client's next SYN, a second later, is served.
"""

import asyncio
import logging
import socket
from collections.abc import Mapping
from typing import Final

from cloudprovider.core.errors import DataPlaneError
from cloudprovider.dataplane import frames
from cloudprovider.dataplane.engine import NftablesEngine
from cloudprovider.dataplane.resets import Flow

_logger: Final = logging.getLogger(__name__)

_EVERY: Final = 0.25
"""Seconds between two looks: a client sends its second SYN after one second (RFC 6298)."""
_RETRY: Final = 5.0
"""Seconds until a look that failed is repeated."""


class ReturnedSyns:
    """Works from now on until :meth:`close`, in the running event loop. ``packets`` is a packet socket on the segment's
    link, whose address is ``mac``; it is closed with this."""

    def __init__(self, engine: NftablesEngine, packets: socket.socket, mac: str) -> None:
        self._engine = engine
        self._packets = packets
        self._mac = bytes.fromhex(mac.replace(":", ""))
        self._answered: Mapping[Flow, int] = {}
        self._task = asyncio.create_task(self._run())

    async def close(self) -> None:
        """Stop."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        self._packets.close()

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(_EVERY)
            try:
                found = await self._engine.returned_syns()
                for flow, times in found.items():
                    if times > self._answered.get(flow, 0):
                        frames.send(self._packets, flow.reset(self._mac))
                self._answered = found
            except DataPlaneError as error:  # the link is down, or gone, which others tell of
                _logger.debug("Returned connections were not looked at.", extra={"error": str(error)})
                await asyncio.sleep(_RETRY)
