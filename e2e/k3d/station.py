"""A client that asks from inside of a container: by a process there (asker.py) that is told what to ask."""

import itertools
import json
import subprocess
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Final

from typing_extensions import override

from tests.lab.network import Namespace
from tests.lab.process import LabError
from tests.lab.traffic import ANSWER_LIMIT_SECONDS, Answer, Client, Connection, Datagrams

ASKER: Final = Path(__file__).parent / "asker.py"
GRACE_SECONDS: Final = 30.0
"""Beyond a request's own limit: what the way into the container may take on a busy machine."""


class Asker:
    """The process in a container. ``enter``: the command that runs another one there, with its standard input."""

    def __init__(self, enter: Sequence[str]) -> None:
        self._process = subprocess.Popen(
            [*enter, "python3", "-u", "-c", ASKER.read_text(encoding="utf-8")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._lock = threading.Lock()
        self._numbers = itertools.count(1)
        self._waiting: dict[int, Future[dict[str, Any]]] = {}
        threading.Thread(target=self._read, name="asker", daemon=True).start()

    def call(self, op: str, *, limit: float = ANSWER_LIMIT_SECONDS, **arguments: object) -> Any:
        """One request. Raises OSError as the container's kernel says it, LabError when the process is gone."""
        number = next(self._numbers)
        answer: Future[dict[str, Any]] = Future()
        try:
            with self._lock:
                assert self._process.stdin is not None
                self._waiting[number] = answer
                self._process.stdin.write(json.dumps({"id": number, "op": op, **arguments}) + "\n")
                self._process.stdin.flush()
        except OSError as error:
            raise LabError(f"asking from a container: {error}") from error
        try:
            told = answer.result(limit + GRACE_SECONDS)
        except TimeoutError:
            raise LabError(f"asking from a container: {op} took more than {limit + GRACE_SECONDS:g} s") from None
        if "error" not in told:
            return told["result"]
        raise OSError(told["error"], told["message"]) if told["error"] else TimeoutError(told["message"])

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as answers:
            for line in answers:
                told = json.loads(line)
                with self._lock:
                    waiting = self._waiting.pop(told["id"])
                waiting.set_result(told)
        with self._lock:
            left, self._waiting = self._waiting, {}
        for waiting in left.values():
            waiting.set_exception(LabError("asking from a container: its process has ended"))


class _Connection(Connection):
    def __init__(self, asker: Asker, number: int) -> None:
        self._asker, self._number = asker, number

    @override
    def get(self, path: str = "/", *, body: bytes | None = None) -> Answer:
        size = -1 if body is None else len(body)
        return Answer(**self._asker.call("get", number=self._number, path=path, size=size))

    @override
    def close(self) -> None:
        self._asker.call("close", number=self._number)


class _Datagrams(Datagrams):
    def __init__(self, asker: Asker, number: int) -> None:
        self._asker, self._number = asker, number

    @override
    def ask(self, *, size: int = 4) -> Answer:
        return Answer(**self._asker.call("ask", number=self._number, size=size))

    @override
    def __exit__(self, *_: object) -> None:
        self._asker.call("close", number=self._number)


class ContainerClient(Client):
    """Meets :class:`tests.lab.traffic.Client`, from inside of a container."""

    def __init__(self, enter: Sequence[str]) -> None:
        super().__init__(Namespace(""))
        self._asker = Asker(enter)

    @override
    def connect(self, address: str, port: int, *, timeout: float = ANSWER_LIMIT_SECONDS) -> Connection:
        number = self._asker.call("open", limit=timeout, kind="tcp", address=address, port=port, timeout=timeout)
        return _Connection(self._asker, number)

    @override
    def datagrams(self, address: str, port: int, *, timeout: float = ANSWER_LIMIT_SECONDS) -> Datagrams:
        number = self._asker.call("open", limit=timeout, kind="udp", address=address, port=port, timeout=timeout)
        return _Datagrams(self._asker, number)

    @override
    def ping(self, address: str) -> bool:
        return bool(self._asker.call("ping", address=address))

    @override
    def own_address(self, address: str) -> str:
        return str(self._asker.call("own", address=address))

    @override
    def forget_neighbours(self) -> None:
        self._asker.call("forget")

    def close(self) -> None:
        """End the process in the container."""
        self._asker.close()
