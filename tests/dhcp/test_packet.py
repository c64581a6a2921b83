"""The codec: everything that is written can be read again, and nothing that comes in can do more than be refused."""

import contextlib
import random
import struct
from collections.abc import Callable
from dataclasses import replace
from ipaddress import IPv4Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloudprovider.dhcp import message as codec
from cloudprovider.dhcp import packet
from cloudprovider.dhcp.message import MalformedPacket, Message, MessageType, Operation, Option
from cloudprovider.dhcp.packet import Datagram
from cloudprovider.dhcp.terms import InvalidTerms, read_terms

HEADER = 240
CHADDR = bytes.fromhex("020000000001")
OFFER = Message(
    operation=Operation.REPLY,
    kind=MessageType.OFFER,
    xid=0x12345678,
    chaddr=CHADDR,
    yiaddr=IPv4Address("10.0.0.5"),
    options={
        Option.SERVER_IDENTIFIER: IPv4Address("10.0.0.1").packed,
        Option.SUBNET_MASK: IPv4Address("255.255.255.0").packed,
        Option.LEASE_TIME: (3600).to_bytes(4, "big"),
        Option.ROUTER: IPv4Address("10.0.0.254").packed,
    },
)
FRAME = packet.encode(
    Datagram(
        source_mac=bytes.fromhex("020000000099"),
        destination_mac=packet.BROADCAST_MAC,
        source=IPv4Address("10.0.0.1"),
        destination=packet.BROADCAST,
        source_port=packet.SERVER_PORT,
        destination_port=packet.CLIENT_PORT,
        message=OFFER,
    )
)

addresses = st.integers(0, 2**32 - 1).map(IPv4Address)
macs = st.binary(min_size=6, max_size=6)
numbers = st.integers(1, 254).filter(lambda n: n not in {Option.MESSAGE_TYPE, Option.OVERLOAD})
messages = st.builds(
    Message,
    operation=st.sampled_from(Operation),
    kind=st.sampled_from(MessageType),
    xid=st.integers(0, 2**32 - 1),
    chaddr=macs,
    secs=st.integers(0, 2**16 - 1),
    broadcast=st.booleans(),
    ciaddr=addresses,
    yiaddr=addresses,
    siaddr=addresses,
    giaddr=addresses,
    options=st.dictionaries(numbers, st.binary(max_size=600), max_size=3),
)
datagrams = st.builds(
    Datagram,
    source_mac=macs,
    destination_mac=macs,
    source=addresses,
    destination=addresses,
    source_port=st.integers(0, 2**16 - 1),
    destination_port=st.integers(0, 2**16 - 1),
    message=messages,
)


def refused(data: bytes) -> str:
    """The reason why a frame is refused."""
    with pytest.raises(MalformedPacket) as caught:
        packet.decode(data)
    return caught.value.reason


def changed(at: int, octets: bytes, *, mend: bool = True) -> bytes:
    """The frame with other octets at a place; with ``mend``, with checksums that fit."""
    frame = bytearray(FRAME)
    frame[at : at + len(octets)] = octets
    if mend:
        frame[24:26] = b"\0\0"
        frame[24:26] = _sum(bytes(frame[14:34]))
        frame[40:42] = b"\0\0"  # the UDP checksum: none
    return bytes(frame)


def _sum(data: bytes) -> bytes:
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return (~total & 0xFFFF).to_bytes(2, "big")


def message_with(options: bytes, *, sname: bytes = b"", file: bytes = b"") -> Message:
    """A message of raw option fields, read."""
    data = bytearray(codec.encode(OFFER)[:HEADER])
    data[44 : 44 + len(sname)] = sname
    data[108 : 108 + len(file)] = file
    return codec.decode(bytes(data) + options)


@given(datagrams)
def test_what_is_written_can_be_read(datagram: Datagram) -> None:
    frame = packet.encode(datagram)
    assert packet.decode(frame) == datagram
    assert packet.decode(frame + b"padding of a short frame") == datagram
    assert len(frame) >= 14 + 20 + 8 + 300


@given(st.binary(max_size=700))
def test_no_noise_does_more_than_be_refused(noise: bytes) -> None:
    with contextlib.suppress(MalformedPacket):
        packet.decode(noise)


@given(st.data())
def test_no_damage_does_more_than_be_refused(data: st.DataObject) -> None:
    frame = bytearray(FRAME)
    for _ in range(data.draw(st.integers(1, 6))):
        frame[data.draw(st.integers(0, len(frame) - 1))] = data.draw(st.integers(0, 255))
    cut = bytes(frame[: data.draw(st.integers(0, len(frame)))])
    for damaged in (bytes(frame), cut):
        with contextlib.suppress(MalformedPacket):
            packet.decode(damaged, checksum_ready=False)


@given(st.binary(max_size=300), st.binary(max_size=64), st.binary(max_size=128))
def test_no_options_do_more_than_be_refused(options: bytes, sname: bytes, file: bytes) -> None:
    with contextlib.suppress(MalformedPacket, InvalidTerms):
        read = message_with(bytes((53, 1, 2)) + options, sname=sname, file=file)
        read.text(Option.MESSAGE)
        read_terms(read, sent=0.0, server_mac=CHADDR, rng=random.Random(1))


@pytest.mark.parametrize(
    ("frame", "reason"),
    [
        (FRAME[:13], "short-frame"),
        (changed(12, b"\x86\xdd"), "ethertype"),
        (FRAME[:33], "ip-length"),
        (changed(14, b"\x65"), "ip-header"),
        (changed(14, b"\x44"), "ip-header"),
        (changed(14, b"\x4f"), "ip-checksum"),  # the checksum is over a longer header now
        (changed(16, b"\xff\xff"), "ip-length"),
        (changed(16, b"\x00\x13"), "ip-length"),
        (changed(22, b"\x11", mend=False), "ip-checksum"),
        (changed(20, b"\x20\x00"), "fragment"),
        (changed(20, b"\x00\x01"), "fragment"),
        (changed(23, b"\x06"), "protocol"),
        (changed(16, b"\x00\x18"), "udp-length"),
        (changed(38, b"\xff\xff"), "udp-length"),
        (changed(38, b"\x00\x07"), "udp-length"),
        (changed(38, b"\x00\x30"), "short-message"),
        (changed(60, b"\x01", mend=False), "udp-checksum"),
        (changed(42, b"\x03"), "operation"),
        (changed(43, b"\x06"), "hardware"),
        (changed(44, b"\x10"), "hardware"),
        (changed(278, b"\x63\x82\x53\x62"), "cookie"),
        (changed(284, b"\x00"), "message-type"),
        (changed(284, b"\x09"), "message-type"),
        (changed(283, b"\xff"), "truncated-option"),
    ],
)
def test_a_broken_frame_is_refused_with_its_reason(frame: bytes, reason: str) -> None:
    assert refused(frame) == reason


def test_header_options_of_ipv4_are_skipped() -> None:
    frame = bytearray(FRAME[:34] + b"\x01\x01\x01\x00" + FRAME[34:])
    frame[14] = 0x46
    frame[16:18] = (int.from_bytes(FRAME[16:18], "big") + 4).to_bytes(2, "big")
    frame[24:26] = b"\0\0"
    frame[24:26] = _sum(bytes(frame[14:38]))
    assert packet.decode(bytes(frame)).message == OFFER


def test_a_udp_checksum_may_be_absent_or_unfinished() -> None:
    assert packet.decode(changed(40, b"\0\0", mend=False)).message == OFFER
    unfinished = changed(40, b"\x12\x34", mend=False)
    assert refused(unfinished) == "udp-checksum"
    assert packet.decode(unfinished, checksum_ready=False).message == OFFER


def test_a_sum_of_zero_is_not_sent_as_none() -> None:
    plain = packet.decode(FRAME)
    missing = int.from_bytes(packet.encode(plain)[40:42], "big")  # what makes the sum whole, secs can add
    frame = packet.encode(replace(plain, message=replace(OFFER, secs=missing)))
    assert frame[40:42] == b"\xff\xff"
    assert packet.decode(frame).message.secs == missing


def test_options_go_on_in_the_boot_file_and_the_server_name() -> None:
    read = message_with(
        bytes((53, 1, 2, 52, 1, 3, 12, 1)) + b"a" + b"\xff",
        file=bytes((12, 1)) + b"b" + b"\xff",
        sname=bytes((0, 0, 12, 1)) + b"c" + b"\xff",
    )
    assert read.options == {Option.HOST_NAME: b"abc"}
    assert read.text(Option.HOST_NAME) == "abc"


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (bytes((53, 1, 2, 52, 1, 4, 255)), "overload"),
        (bytes((53, 1, 2, 52, 2, 1, 1, 255)), "overload"),
        (bytes((53, 2, 2, 2, 255)), "message-type"),
        (bytes((12, 1, 65, 255)), "message-type"),
        (bytes((53, 1, 2, 12)), "truncated-option"),
        (bytes((53, 1, 2, 12, 5, 65)), "truncated-option"),
    ],
)
def test_broken_options_are_refused_with_their_reason(options: bytes, reason: str) -> None:
    with pytest.raises(MalformedPacket) as caught:
        message_with(options)
    assert caught.value.reason == reason


@pytest.mark.parametrize("take", [Message.address, Message.addresses, Message.seconds])
def test_options_of_a_wrong_length_are_refused(take: Callable[[Message, Option], object]) -> None:
    read = message_with(bytes((53, 1, 2, Option.ROUTER, 3, 1, 2, 3, 255)))
    with pytest.raises(MalformedPacket) as caught:
        take(read, Option.ROUTER)
    assert caught.value.reason == "option-length"


def test_a_server_s_words_are_taken_as_printable_ascii() -> None:
    read = message_with(bytes((53, 1, 6, 56, 6)) + b"no\n\xff\0!" + b"\xff")
    assert read.text(Option.MESSAGE) == "no!"
