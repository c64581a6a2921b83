"""What is said on a probe's connection, without any I/O: octets in, octets out, and an answer in the end."""

from typing import Protocol

from cloudprovider.core.health import Answer, Outcome


class Exchange(Protocol):
    """One conversation, beginning with ours. An error that it raises is a mistake of this program."""

    def begin(self) -> bytes:
        """What to send as soon as there is a connection."""
        ...

    def receive(self, data: bytes, *, ended: bool) -> Answer | None:
        """Take what has come; ``ended``: nothing more will. None as long as more is needed, which is not returned
        for what has ended."""
        ...

    def take(self) -> bytes:
        """What is to be sent by now, once."""
        ...


def bad(said: str) -> Answer:
    """The other end has not answered as it should."""
    return Answer(Outcome.BAD, said)
