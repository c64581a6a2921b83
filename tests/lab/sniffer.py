"""Who says on the LAN that an address is its: every ARP frame, with its time."""

import contextlib
import socket
import struct
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address

from tests.lab.network import run

_ETH_P_ARP = 0x0806
_ARP = struct.Struct("!6s6sH HHBBH6s4s6s4s")
OVERLAP_SECONDS = 0.05
"""So long may the one before still be heard when the next one has announced itself: it hears that, and withdraws."""


@dataclass(frozen=True)
class Heard:
    """An ARP frame whose sender says that an address is its."""

    at: float
    mac: str
    address: str


class Sniffer:
    """All that was heard since it was started."""

    def __init__(self, device: str) -> None:
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETH_P_ARP))
        self._socket.bind((device, 0))
        self._socket.settimeout(0.1)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self.heard: list[Heard] = []

    def _listen(self) -> None:
        while not self._ended.is_set():
            try:
                frame = self._socket.recv(2048)
            except TimeoutError:
                continue
            if len(frame) < _ARP.size:
                continue
            _, source, _, _, _, _, _, _, mac, address, _, _ = _ARP.unpack_from(frame)
            if address != bytes(4) and mac == source:
                self.heard.append(Heard(time.monotonic(), mac.hex(":"), str(IPv4Address(address))))

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._ended.set()
        self._thread.join()
        self._socket.close()

    def of(self, address: str) -> list[Heard]:
        """What was heard of one address, in order."""
        return [heard for heard in self.heard if heard.address == address]

    def check_one_at_a_time(self, addresses: set[str]) -> None:
        """Raise AssertionError where two hosts answered for one address beside each other."""
        last: dict[str, Heard] = {}
        left: defaultdict[str, dict[str, float]] = defaultdict(dict)
        for heard in list(self.heard):
            if heard.address not in addresses:
                continue
            before = last.get(heard.address)
            if before is not None and before.mac != heard.mac:
                gone = left[heard.address].get(heard.mac)
                if gone is not None and heard.at - gone < OVERLAP_SECONDS:
                    continue  # the one before, not yet silent
                assert gone is None or heard.at - gone > OVERLAP_SECONDS
                left[heard.address][before.mac] = heard.at
            last[heard.address] = heard


@contextlib.contextmanager
def sniffing(device: str) -> Iterator[Sniffer]:
    """Listen on a bridge for as long as this lasts."""
    run("ip", "link", "set", device, "promisc", "on")
    sniffer = Sniffer(device)
    sniffer.start()
    try:
        yield sniffer
    finally:
        sniffer.stop()
        run("ip", "link", "set", device, "promisc", "off")
