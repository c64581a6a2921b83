"""nf_tables over netlink: elements in transactions, dumps, and a digest of the rules.

Numbers and structure are those of include/uapi/linux/netfilter/nf_tables.h and nfnetlink.h. All messages of a
transaction are one batch: the kernel commits it whole or not at all.
"""

import hashlib
import struct
from collections.abc import Iterable, Iterator, Sequence
from typing import Final, NamedTuple

from cloudprovider.core.errors import DataPlaneError
from cloudprovider.dataplane import netlink
from cloudprovider.dataplane.netlink import NLM_F_ACK, NLM_F_CREATE, Message, NetlinkSocket

NETLINK_NETFILTER: Final = 12
NFPROTO_IPV4: Final = 2
NFPROTO_IPV6: Final = 10
NFPROTO_NETDEV: Final = 5

_SUBSYSTEM: Final = 10 << 8
_GETCHAIN: Final = _SUBSYSTEM | 4
_GETRULE: Final = _SUBSYSTEM | 7
_GETSET: Final = _SUBSYSTEM | 10
_NEWSETELEM: Final = _SUBSYSTEM | 12
_GETSETELEM: Final = _SUBSYSTEM | 13
_DELSETELEM: Final = _SUBSYSTEM | 14
_GETGEN: Final = _SUBSYSTEM | 16
_BATCH_BEGIN: Final = 0x10
_BATCH_END: Final = 0x11
_BATCH_HEADER: Final = struct.pack("=BBH", 0, 0, 10 << 8)  # res_id: the subsystem, big-endian

_TABLE: Final = 1
_CHAIN_NAME: Final = 3
_CHAIN_SHAPE: Final = (3, 4, 5, 7, 10)  # name, hook, policy, type, flags
_RULE_CHAIN: Final = 2
_RULE_EXPRESSIONS: Final = 4
_SET_NAME: Final = 2
_SET_SHAPE: Final = (2, 3, 4, 5, 6, 7)  # name, flags, key type and length, data type and length
_LIST_SET: Final = 2
_LIST_ELEMENTS: Final = 3
_ELEMENT: Final = 1
_KEY: Final = 1
_DATA: Final = 2
_EXPRESSION: Final = 7
_VALUE: Final = 1
_VERDICT: Final = 2
_VERDICT_CODE: Final = 1
_VERDICT_CHAIN: Final = 2
_GOTO: Final = struct.pack(">i", -4)
_GENERATION: Final = 1
_EXPRESSION_DATA: Final = 2
_COUNTER_BYTES: Final = 1
_COUNTER_PACKETS: Final = 2

_MOST_IN_A_LIST: Final = 60_000
"""Bytes of elements in one message: the length of an attribute has 16 bits."""


def value(data: bytes) -> bytes:
    """Map data that is a value."""
    return netlink.nested(_DATA, netlink.attribute(_VALUE, data))


def goto(chain: str) -> bytes:
    """Map data that sends the packet to a chain."""
    verdict = netlink.attribute(_VERDICT_CODE, _GOTO) + netlink.text(_VERDICT_CHAIN, chain)
    return netlink.nested(_DATA, netlink.nested(_VERDICT, verdict))


def element(key: bytes, data: bytes = b"") -> bytes:
    """One element: a key, and for a map what :func:`value` or :func:`goto` made."""
    return netlink.nested(_ELEMENT, netlink.nested(_KEY, netlink.attribute(_VALUE, key)), data)


class Element:
    """An element as the kernel gives it out; parts are read when they are asked for."""

    __slots__ = ("_parts", "key")

    def __init__(self, data: memoryview) -> None:
        self._parts = netlink.attributes(data)
        self.key = bytes(netlink.attributes(self._parts[_KEY])[_VALUE])

    def value(self) -> bytes:
        """The value that the key maps to; empty for a set, or when it maps to a verdict."""
        found = netlink.attributes(self._parts[_DATA]) if _DATA in self._parts else {}
        return bytes(found[_VALUE]) if _VALUE in found else b""

    def target(self) -> str:
        """The chain that the key sends packets to by goto; empty for anything else."""
        found = netlink.attributes(self._parts[_DATA]) if _DATA in self._parts else {}
        verdict = netlink.attributes(found[_VERDICT]) if _VERDICT in found else {}
        if _VERDICT_CHAIN not in verdict or bytes(verdict[_VERDICT_CODE]) != _GOTO:
            return ""
        return netlink.string(verdict[_VERDICT_CHAIN])

    def counter(self) -> tuple[int, int]:
        """Packets and bytes; zero without a counter."""
        found = netlink.attributes(self._parts[_EXPRESSION]) if _EXPRESSION in self._parts else {}
        data = netlink.attributes(found[_EXPRESSION_DATA]) if _EXPRESSION_DATA in found else {}
        if _COUNTER_PACKETS not in data or _COUNTER_BYTES not in data:
            return (0, 0)
        return (int.from_bytes(data[_COUNTER_PACKETS], "big"), int.from_bytes(data[_COUNTER_BYTES], "big"))


class SetName(NamedTuple):
    """A set or map: of the table of which family, and its name there."""

    family: int
    name: str


class Transaction:
    """Changes of elements of the tables of one name, collected, then committed together; removals go first."""

    def __init__(self, table: str) -> None:
        self._table = table
        self._added: dict[SetName, list[bytes]] = {}
        self._removed: dict[SetName, list[bytes]] = {}

    def __bool__(self) -> bool:
        return bool(self._added or self._removed)

    def add(self, name: SetName, elements: Iterable[bytes]) -> None:
        """Add elements (made by :func:`element`) to the set ``name``."""
        self._added.setdefault(name, []).extend(elements)

    def remove(self, name: SetName, elements: Iterable[bytes]) -> None:
        """Remove elements by key; a key may come back in the same transaction."""
        self._removed.setdefault(name, []).extend(elements)

    def messages(self) -> Iterator[tuple[int, int, bytes, str]]:
        """Yield (type, flags, body, what it does)."""
        for kind, flags, verb, changes in (
            (_DELSETELEM, 0, "remove", self._removed),
            (_NEWSETELEM, NLM_F_CREATE, "add", self._added),
        ):
            for name, elements in changes.items():
                for part in _parts(elements):
                    body = _elements_of(self._table, name) + netlink.nested(_LIST_ELEMENTS, *part)
                    yield kind, flags, body, f"{verb} {len(part)} element(s) of {name.name}"


class Nftables:
    """nf_tables of one namespace (that of the thread that makes it).

    Changes and short questions have a socket of their own, so that they may come between the slices of a long dump.
    """

    def __init__(self) -> None:
        self._netlink = NetlinkSocket(NETLINK_NETFILTER)
        try:
            self._dumps = NetlinkSocket(NETLINK_NETFILTER)
        except BaseException:
            self._netlink.close()
            raise

    def close(self) -> None:
        """Close the sockets. Rules stay."""
        self._netlink.close()
        self._dumps.close()

    def commit(self, transaction: Transaction) -> None:
        """Commit a transaction. Raises DataPlaneError, naming what was refused; then nothing was changed."""
        begin = netlink.message(_BATCH_BEGIN, 0, self._netlink.sequence(), _BATCH_HEADER)
        messages = list(transaction.messages())
        doing: dict[int, str] = {}
        payload = [begin]
        number = 0
        for position, (kind, flags, body, what) in enumerate(messages):
            number = self._netlink.sequence()
            doing[number] = what
            acknowledge = NLM_F_ACK if position == len(messages) - 1 else 0
            payload.append(netlink.message(kind, flags | acknowledge, number, body))
        payload.append(netlink.message(_BATCH_END, 0, self._netlink.sequence(), _BATCH_HEADER))
        refusals = self._netlink.request(b"".join(payload), number)
        if refusals:
            first = refusals[0]
            what = doing.get(first.sequence, "commit the transaction")
            raise DataPlaneError(f"nf_tables refused to {what}: {first.describe()}", errno=first.errno)

    def generation(self) -> int:
        """A number that grows by one with every transaction that anybody commits in this namespace."""
        for part in self._netlink.dump(_GETGEN, bytes(4), flags=0):
            for answer in part:
                return int.from_bytes(netlink.attributes(answer.body[4:])[_GENERATION], "big")
        raise DataPlaneError("nf_tables did not tell its generation; is nf_tables in this kernel?")

    def elements(self, table: str, name: SetName) -> Iterator[tuple[memoryview, bool]]:
        """Yield a set's elements slice by slice: the raw list, and whether somebody changed the rules meanwhile.
        Only one such dump at a time."""
        for part in self._dumps.dump(_GETSETELEM, _elements_of(table, name)):
            for answer in part:
                found = netlink.attributes(answer.body[4:])
                if _LIST_ELEMENTS in found:
                    yield found[_LIST_ELEMENTS], bool(answer.flags & netlink.NLM_F_DUMP_INTR)

    def chain_names(self, table: str, family: int) -> list[str]:
        """The chains of the table of that family."""
        return [netlink.string(found[_CHAIN_NAME]) for found in self._objects(_GETCHAIN, table, family)]

    def digest(self, table: str, family: int) -> bytes:
        """A hash over the table's chains, rules in their order, and the shape of its sets (not their elements)."""
        parts = [_picture(found, _CHAIN_SHAPE) for found in self._objects(_GETCHAIN, table, family)]
        rules: dict[bytes, list[bytes]] = {}
        for found in self._objects(_GETRULE, table, family):
            rules.setdefault(bytes(found[_RULE_CHAIN]), []).append(bytes(found.get(_RULE_EXPRESSIONS, b"")))
        parts += [chain + b"\0".join(expressions) for chain, expressions in rules.items()]
        parts += [_picture(found, _SET_SHAPE) for found in self._objects(_GETSET, table, family)]
        return hashlib.sha256(b"\1".join(sorted(parts))).digest()

    def _objects(self, kind: int, table: str, family: int) -> Iterator[dict[int, memoryview]]:
        body = struct.pack("=BBH", family, 0, 0) + netlink.text(_TABLE, table)
        answers: list[Message] = [answer for part in self._netlink.dump(kind, body) for answer in part]
        for answer in answers:
            found = netlink.attributes(answer.body[4:])
            if netlink.string(found[_TABLE]) == table:
                yield found


def each_element(elements: memoryview) -> Iterator[Element]:
    """Take apart what :meth:`Nftables.elements` yields."""
    for kind, data in netlink.each_attribute(elements):
        if kind == _ELEMENT:
            yield Element(data)


def _elements_of(table: str, name: SetName) -> bytes:
    header = struct.pack("=BBH", name.family, 0, 0)
    return header + netlink.text(_TABLE, table) + netlink.text(_LIST_SET, name.name)


def _parts(elements: Sequence[bytes]) -> Iterator[Sequence[bytes]]:
    """Cut a list of elements so that each part fits into one attribute."""
    start = size = 0
    for position, data in enumerate(elements):
        if size + len(data) > _MOST_IN_A_LIST:
            yield elements[start:position]
            start, size = position, 0
        size += len(data)
    if start < len(elements):
        yield elements[start:]


def _picture(found: dict[int, memoryview], kinds: Sequence[int]) -> bytes:
    return b"\0".join(b"%d:%s" % (kind, bytes(found.get(kind, b""))) for kind in kinds)
