"""Proof that the process which holds a Lease is dead, so that the next one on the spot need not wait for its expiry.

A process that was killed can't give its Lease back. Its kernel knows at once, though: a socket in the abstract
namespace (unix(7)) is bound while its process lives, also while that is stopped or hangs, and is never left behind.
So a candidate binds one with its own name, and its Lease bears a mark that says where: the boot, the network namespace.
Whoever stands in that same namespace asks the kernel; all others, and all who get no clear answer, wait.

While the holder's socket is there its network namespace is too, and nobody else gets the namespace's inode number: who
sees that number in the same boot looks where the holder was. Containers of a pod share the pod's namespace, which
outlives them (https://kubernetes.io/docs/concepts/workloads/pods/#pod-networking), so a restarted container stands
where its predecessor stood, and so does a plain process that is started again. A pod made anew does not.
"""

import errno
import hashlib
import logging
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from cloudprovider.core.errors import ConfigurationError

_log = logging.getLogger(__name__)

_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")
_NETWORK_NAMESPACE: Final = Path("/proc/thread-self/ns/net")


@contextmanager
def sign_of_life(lease: str, identity: str) -> Iterator[str]:
    """While entered, others here can see that ``identity``, a candidate for ``lease`` ("NAMESPACE/NAME"), lives.

    Yields the mark for :func:`is_proven_dead`, "" where the kernel offers no such sign. Raises ConfigurationError when
    another live process here has this identity.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sign:
        try:
            sign.bind(_address(lease, identity))
            mark = _mark(identity)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise ConfigurationError(
                    f"another process on this machine is {identity} for the Lease {lease} already: each must have an"
                    " identity of its own"
                ) from error
            mark = ""
            _log.info(
                "The Lease will have to expire if this process is killed: it can't show that it lives.",
                extra={"lease": lease, "error": str(error)},
            )
        yield mark


def is_proven_dead(lease: str, identity: str, mark: str) -> bool:
    """Whether ``identity``, which left ``mark`` on ``lease``, lives no more. False wherever that can't be told."""
    try:
        if mark != _mark(identity):
            return False
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as probe:
            probe.connect(_address(lease, identity))
    except ConnectionRefusedError:
        return True  # nobody has that name: unix_find_socket_byname() in net/unix/af_unix.c
    except OSError:
        return False
    return False


def _mark(identity: str) -> str:
    """What is only equal for the same identity, seen in the same boot and network namespace."""
    return f"{_BOOT_ID.read_text().strip()} {_NETWORK_NAMESPACE.readlink()} {identity}"


def _address(lease: str, identity: str) -> str:
    """A name in the abstract namespace. A digest, as there is room for 107 bytes only."""
    return "\0cloudprovider-" + hashlib.sha256(f"{lease} {identity}".encode()).hexdigest()
