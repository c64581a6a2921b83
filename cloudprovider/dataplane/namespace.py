"""Network namespaces under /run/netns, as ip-netns(8) keeps them: made, entered, removed.

A namespace comes into being without a name and gets it as the last step, so a crash on the way leaves nothing behind:
the kernel takes back what nobody can reach. A thread can't be trusted to come home from another namespace, so
each call runs in a short-lived thread of its own.
"""

import ctypes
import os
import stat
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final, Generic, TypeVar

from cloudprovider.core.errors import DataPlaneError

T = TypeVar("T")

DIRECTORY: Final = Path("/run/netns")

_CLONE_NEWNET: Final = 0x40000000
_MS_BIND: Final = 0x1000
_MS_REC: Final = 0x4000
_MS_SHARED: Final = 1 << 20
_MNT_DETACH: Final = 2

_libc: Final = ctypes.CDLL(None, use_errno=True)


def call_in(namespace: Path, function: Callable[[], T]) -> T:
    """Call ``function`` inside a namespace, in a thread of its own, and return its result.

    What it opens (sockets) stays in that namespace. Raises DataPlaneError when the namespace can't be entered.
    """

    def enter() -> None:
        try:
            handle = os.open(namespace, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise _error(f"can't open network namespace {namespace}", error.errno or 0) from error
        try:
            _check(_libc.setns(handle, _CLONE_NEWNET), f"can't enter network namespace {namespace}")
        finally:
            os.close(handle)

    return _in_thread(enter, function)


def call_in_new(function: Callable[[], T]) -> T:
    """Call ``function`` inside a namespace made for it, which ends with the call. Raises DataPlaneError."""
    return _in_thread(lambda: _check(_libc.unshare(_CLONE_NEWNET), "can't make a network namespace"), function)


def create(name: str, prepare: Callable[[Path], None]) -> Path:
    """Make a namespace, call ``prepare`` inside with a path to it, then give it its name.

    Where ``prepare`` raises, nothing is left. Returns the path under /run/netns. Raises DataPlaneError.
    """
    path = DIRECTORY / name

    def build() -> Path:
        itself = Path(f"/proc/self/task/{threading.get_native_id()}/ns/net")
        prepare(itself)
        _make_directory()
        path.touch(mode=0o444, exist_ok=True)  # a plain file is what a crash before the mount leaves: taken over
        _mount(str(itself), str(path), _MS_BIND, f"can't give network namespace {name} its name")
        return path

    return _in_thread(lambda: _check(_libc.unshare(_CLONE_NEWNET), "can't make a network namespace"), build)


def remove(name: str) -> None:
    """Take a namespace's name away; the kernel removes it once no socket and no process is in it. Unknown: ignored."""
    path = DIRECTORY / name
    while is_namespace(path):  # mounts may be stacked
        _check(_libc.umount2(os.fsencode(path), _MNT_DETACH), f"can't unmount network namespace {path}")
    path.unlink(missing_ok=True)


def names() -> list[str]:
    """The named namespaces of this host."""
    if not DIRECTORY.is_dir():
        return []
    return sorted(entry.name for entry in DIRECTORY.iterdir() if is_namespace(entry))


def is_namespace(path: Path) -> bool:
    """Whether a namespace is mounted there (a crash may leave a plain file)."""
    try:
        status = path.stat()
    except OSError:
        return False
    return stat.S_ISREG(status.st_mode) and status.st_dev == _nsfs_device()


def _nsfs_device() -> int:
    return Path("/proc/self/ns/net").stat().st_dev


def _make_directory() -> None:
    """Make /run/netns a shared mount, so that other mount namespaces see what is mounted in it (as ip-netns does)."""
    DIRECTORY.mkdir(mode=0o755, parents=True, exist_ok=True)
    if _libc.mount(b"", os.fsencode(DIRECTORY), b"none", _MS_SHARED | _MS_REC, None) == 0:
        return
    _mount(str(DIRECTORY), str(DIRECTORY), _MS_BIND | _MS_REC, f"can't bind-mount {DIRECTORY}")
    _mount("", str(DIRECTORY), _MS_SHARED | _MS_REC, f"can't share the mount of {DIRECTORY}")


def _mount(source: str, target: str, flags: int, sentence: str) -> None:
    _check(_libc.mount(os.fsencode(source), os.fsencode(target), b"none", flags, None), sentence)


def _check(result: int, sentence: str) -> None:
    if result != 0:
        raise _error(sentence, ctypes.get_errno())


def _error(sentence: str, number: int) -> DataPlaneError:
    return DataPlaneError(f"{sentence}: {os.strerror(number)}; the agent needs CAP_SYS_ADMIN", errno=number)


class _Call(Generic[T]):
    """What a thread came back with."""

    def __init__(self) -> None:
        self.results: list[T] = []
        self.errors: list[BaseException] = []


def _in_thread(enter: Callable[[], None], function: Callable[[], T]) -> T:
    call: _Call[T] = _Call()

    def run() -> None:
        try:
            enter()
            call.results.append(function())
        except BaseException as error:  # noqa: BLE001 (handed to the caller's thread)
            call.errors.append(error)

    thread = threading.Thread(target=run, name="netns")
    thread.start()
    thread.join()
    if call.errors:
        raise call.errors[0]
    return call.results[0]
