"""A DHCP server at the other end of a socket pair: the fake's server, spoken to in frames."""

import asyncio
import contextlib
import socket
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import IPv4Address

from cloudprovider.dhcp import packet
from cloudprovider.dhcp.fake import FakeDhcpServer
from cloudprovider.dhcp.identity import client_identity
from cloudprovider.dhcp.message import NOBODY, Message, MessageType, Operation, Option
from cloudprovider.dhcp.packet import Datagram

SERVER_MAC = bytes.fromhex("02aabbccdd01")


def owner(number: int) -> str:
    """A UID; the server knows the first hundred."""
    return f"7f6c0b1e-6e0a-4f0e-9d5a-0000000{number:05}"


class WireServer:
    """Answers each frame at once, as ``model`` says. ``heard`` keeps all that has come."""

    def __init__(self, model: FakeDhcpServer, end: socket.socket) -> None:
        self.model = model
        self.heard: list[Datagram] = []
        self._end = end
        self._names: dict[bytes, str] = {}

    def introduce(self, owner: str) -> None:
        """Clients are known in the model by their owners' UIDs; on the wire there are only identifiers."""
        self._names[client_identity(owner).client_id] = owner

    def readable(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while True:
                datagram = packet.decode(self._end.recv(2048))
                self.heard.append(datagram)
                answer = self._answer(datagram.message)
                if answer is not None and self.model.answering:
                    self.say(answer)

    def kinds(self) -> list[MessageType]:
        return [datagram.message.kind for datagram in self.heard]

    def say(self, message: Message) -> None:
        """Send a message to the client, asked for or not."""
        self.send(self.framed(message))

    def framed(self, message: Message) -> bytes:
        """The frame of a message to the client."""
        datagram = Datagram(
            source_mac=SERVER_MAC,
            destination_mac=packet.BROADCAST_MAC,
            source=self.model.server,
            destination=packet.BROADCAST,
            source_port=packet.SERVER_PORT,
            destination_port=packet.CLIENT_PORT,
            message=message,
        )
        return packet.encode(datagram)

    def send(self, frame: bytes) -> None:
        self._end.send(frame)

    def _answer(self, asked: Message) -> Message | None:
        model, owner = self.model, self._names[asked.options[Option.CLIENT_IDENTIFIER]]
        chosen = asked.address(Option.SERVER_IDENTIFIER)
        address = asked.address(Option.REQUESTED_ADDRESS) or asked.ciaddr
        if not model.answering or chosen not in {None, model.server}:
            return None
        match asked.kind:
            case MessageType.DISCOVER:
                offered = model.offer(owner, address if address != NOBODY else None)
                return _reply(model, asked, MessageType.OFFER, offered) if offered is not None else None
            case MessageType.REQUEST:
                if address not in model.addresses or model.owners.get(address, owner) != owner:
                    return _reply(model, asked, MessageType.NAK, NOBODY)
                model.owners[address] = owner
                return _reply(model, asked, MessageType.ACK, address)
            case MessageType.DECLINE:
                model.declined.add(address)
        if model.owners.get(address) == owner:
            del model.owners[address]
        return None


def _reply(model: FakeDhcpServer, asked: Message, kind: MessageType, address: IPv4Address) -> Message:
    options: dict[int, bytes] = {Option.SERVER_IDENTIFIER: model.server.packed}
    if kind is not MessageType.NAK:
        duration = int(model.duration.total_seconds()) if model.duration is not None else 0xFFFFFFFF
        options[Option.LEASE_TIME] = duration.to_bytes(4, "big")
        options[Option.SUBNET_MASK] = (0xFFFFFFFF << (32 - model.prefix_length) & 0xFFFFFFFF).to_bytes(4, "big")
        if model.gateway is not None:
            options[Option.ROUTER] = model.gateway.packed
    return replace(asked, operation=Operation.REPLY, kind=kind, yiaddr=address, ciaddr=NOBODY, options=options)


@contextlib.contextmanager
def wire(model: FakeDhcpServer) -> Iterator[tuple[WireServer, socket.socket]]:
    """A server on the wire, and the client's end of it."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    for end in (ours, theirs):
        end.settimeout(0)
    server = WireServer(model, ours)
    for number in range(100):
        server.introduce(owner(number))
    loop = asyncio.get_running_loop()
    loop.add_reader(ours, server.readable)
    try:
        yield server, theirs
    finally:
        loop.remove_reader(ours)
        ours.close()
        theirs.close()
