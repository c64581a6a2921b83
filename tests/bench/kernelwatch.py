"""When the kernel commits a change of rules, seen from outside: the notifications that ``nft monitor`` shows."""

import socket
import threading
import time
from collections import deque
from typing import Final

from tests.lab import netns
from tests.lab.network import Namespace

_SOL_NETLINK: Final = 270  # linux/socket.h
_ADD_MEMBERSHIP: Final = 1  # linux/netlink.h, NETLINK_ADD_MEMBERSHIP
_NFTABLES_GROUP: Final = 7  # linux/netfilter/nfnetlink.h, NFNLGRP_NFTABLES
_NETFILTER: Final = 12  # linux/netlink.h, NETLINK_NETFILTER
_RECEIVE_BUFFER_FORCE: Final = 33  # socket(7), SO_RCVBUFFORCE
_RECEIVE_BYTES: Final = 16 << 20


class KernelWatch:
    """The times (monotonic) of the last commits in one network namespace."""

    def __init__(self, namespace: Namespace) -> None:
        self._socket = netns.call(namespace.name, _open)
        self._socket.settimeout(0.2)
        self._times: deque[float] = deque(maxlen=200_000)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def first_after(self, moment: float) -> float | None:
        """The first commit after ``moment``; None if there was none (yet)."""
        return next((t for t in tuple(self._times) if t > moment), None)

    def last(self) -> float | None:
        """The latest commit."""
        return self._times[-1] if self._times else None

    def close(self) -> None:
        self._stop.set()
        self._thread.join()
        self._socket.close()

    def _listen(self) -> None:
        while not self._stop.is_set():
            try:
                self._socket.recv(1 << 16)
            except TimeoutError:
                continue
            except OSError:  # more notifications than the socket could hold: times of some are lost, not the last
                continue
            self._times.append(time.monotonic())


def _open() -> socket.socket:
    opened = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETFILTER)
    opened.setsockopt(socket.SOL_SOCKET, _RECEIVE_BUFFER_FORCE, _RECEIVE_BYTES)
    opened.bind((0, 0))
    opened.setsockopt(_SOL_NETLINK, _ADD_MEMBERSHIP, _NFTABLES_GROUP)
    return opened
