"""Doing something inside a network namespace: in a thread of its own that enters it and ends there.

A socket belongs for ever to the namespace that it was made in, whichever thread uses it later.
"""

import ctypes
import os
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

CLONE_NEWNET = 0x40000000
NETNS = Path("/run/netns")
_libc = ctypes.CDLL(None, use_errno=True)


def call(namespace: str, function: Callable[[], T]) -> T:
    """Return what ``function`` returns in the namespace; "" is the namespace that the lab itself is in.

    Raises what it raises, and OSError when there is no such namespace.
    """
    if not namespace:
        return function()
    outcome: list[T] = []
    errors: list[BaseException] = []

    def inside() -> None:
        try:
            with (NETNS / namespace).open("rb") as file:
                if _libc.setns(file.fileno(), CLONE_NEWNET) != 0:
                    number = ctypes.get_errno()
                    raise OSError(number, f"entering namespace {namespace}: {os.strerror(number)}")
            outcome.append(function())
        except BaseException as error:  # noqa: BLE001 handed to the caller's thread
            errors.append(error)

    thread = threading.Thread(target=inside, name=f"netns-{namespace}")
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return outcome[0]


def make_socket(namespace: str, family: socket.AddressFamily, kind: socket.SocketKind) -> socket.socket:
    """A socket that lives in the namespace."""
    return call(namespace, lambda: socket.socket(family, kind))


def free_port(namespace: str, address: str) -> int:
    """A TCP port that nobody uses on ``address`` now."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with make_socket(namespace, family, socket.SOCK_STREAM) as probe:
        probe.bind((address, 0))
        port: int = probe.getsockname()[1]
        return port


def set_sysctl(namespace: str, **values: int) -> None:
    """Set ``net.`` settings of the namespace; ``__`` in a name stands for a dot: ``ipv4__ip_forward=1``."""

    def write() -> None:
        for name, value in values.items():
            Path("/proc/sys/net", *name.split("__")).write_text(f"{value}\n")

    call(namespace, write)
