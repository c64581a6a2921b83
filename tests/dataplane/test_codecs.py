"""Bytes to and from the kernel, without a kernel."""

import struct
from ipaddress import IPv4Address, IPv4Interface, IPv6Address, ip_address, ip_interface

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloudprovider.core.checksum import internet_checksum
from cloudprovider.core.mac import MACAddress
from cloudprovider.dataplane import arp, netlink
from cloudprovider.dataplane.heard import Heard
from cloudprovider.dataplane.naming import Names
from cloudprovider.dataplane.nftables import SetName, Transaction, each_element, element, value
from cloudprovider.dataplane.resets import Flow
from cloudprovider.dataplane.rtnetlink import host_interface, strays, vips
from cloudprovider.dataplane.ruleset import Version

MAC = bytes.fromhex("020000000001")
OTHER = bytes.fromhex("020000000002")
ADDRESSES = st.ip_addresses(v=4)


@given(st.lists(st.tuples(st.integers(1, 0x3FFF), st.binary(max_size=40))))
def test_attributes_come_back_as_they_went(pairs: list[tuple[int, bytes]]) -> None:
    row = b"".join(netlink.attribute(kind, payload) for kind, payload in pairs)
    assert len(row) % 4 == 0
    assert [(kind, bytes(payload)) for kind, payload in netlink.each_attribute(memoryview(row))] == pairs


@given(st.binary(max_size=80))
def test_broken_attributes_end_the_row_and_never_raise(data: bytes) -> None:
    for kind, payload in netlink.each_attribute(memoryview(data)):
        assert 0 <= kind <= 0x3FFF
        assert len(payload) <= len(data)


def test_a_transaction_removes_before_it_adds_and_fits_its_messages() -> None:
    transaction, name = Transaction("t"), SetName(2, "s")
    assert not transaction
    transaction.add(name, [element(struct.pack("=I", i), value(bytes(4))) for i in range(5000)])
    transaction.remove(name, [element(bytes(4))])
    kinds = [what.split()[0] for _, _, _, what in transaction.messages()]
    assert kinds == ["remove", "add", "add", "add"]
    for _, _, body, _ in transaction.messages():
        assert len(body) < 65535


def test_elements_are_read_as_they_are_built() -> None:
    row = element(b"abcd", value(b"\1\2")) + element(b"efgh")
    first, second = each_element(memoryview(row))
    assert (first.key, first.value(), first.target(), first.counter()) == (b"abcd", b"\1\2", "", (0, 0))
    assert (second.key, second.value()) == (b"efgh", b"")


@pytest.mark.parametrize(
    ("version", "client", "vip"), [(4, "192.0.2.9", "192.0.2.1"), (6, "2001:db8::9", "2001:db8::1")]
)
def test_a_returned_syn_is_answered_by_a_reset_without_ack(version: Version, client: str, vip: str) -> None:
    ends = [ip_address(end).packed for end in (client, vip)]
    key = MAC + bytes(2) + ends[0] + b"\xc0\x01\0\0" + ends[1] + b"\0\x50\0\0"
    flow = Flow.unpack(version, key)
    assert flow == Flow(MACAddress.unpack(MAC), ip_address(client), 0xC001, ip_address(vip), 80)
    frame = flow.reset(OTHER)
    assert frame[:12] == MAC + OTHER
    header, segment = (frame[14:34], frame[34:]) if version == 4 else (frame[14:54], frame[54:])
    assert header.endswith(ends[1] + ends[0])
    if version == 4:
        assert internet_checksum(header) == 0
    assert internet_checksum(ends[1] + ends[0] + struct.pack("!II", len(segment), 6) + segment) == 0
    assert struct.unpack("!HHIIBB", segment[:14]) == (80, 0xC001, 0, 0, 0x50, 0x04)


def test_a_probe_asks_for_an_address_that_nobody_says_to_have() -> None:
    heard = arp.parse(arp.probe(MAC, IPv4Address("192.0.2.1")))
    assert heard == Heard(mac=MAC.hex(":"), sender=IPv4Address(0), target=IPv4Address("192.0.2.1"))
    assert heard.is_probe


def test_an_announcement_says_who_has_the_address() -> None:
    for frame in arp.announcements(MAC, IPv4Address("192.0.2.1")):
        heard = arp.parse(frame + bytes(18))  # Ethernet pads to 60 bytes
        assert heard is not None
        assert (heard.sender, heard.target, heard.is_probe) == (heard.target, IPv4Address("192.0.2.1"), False)


def test_a_question_names_who_asks_and_whom() -> None:
    target, own, node = IPv4Address("192.0.2.1"), IPv4Address("192.0.2.2"), bytes.fromhex("020000000099")
    everybody, one = arp.question(MAC, target, own=own, to=None), arp.question(MAC, target, own=None, to=node)
    assert (everybody[:6], one[:6]) == (b"\xff" * 6, node)
    assert arp.parse(everybody) == Heard(mac=MAC.hex(":"), sender=own, target=target)
    assert one[6:] == arp.probe(MAC, target)[6:]


def test_a_frame_from_another_machine_than_it_says_is_seen() -> None:
    frame = arp.announcements(MAC, IPv4Address("192.0.2.1"))[1]
    for position in range(6, 12):
        heard = arp.parse(frame[:position] + bytes([frame[position] ^ 4]) + frame[position + 1 :])
        assert heard is not None
        assert not heard.honest


@given(st.binary(max_size=60))
def test_noise_is_no_arp(data: bytes) -> None:
    assert arp.parse(data) is None


@pytest.mark.parametrize(("position", "byte"), [(12, 0x86), (15, 6), (16, 0x86), (18, 8), (19, 16), (21, 3)])
def test_other_arp_is_ignored(position: int, byte: int) -> None:
    frame = bytearray(arp.probe(MAC, IPv4Address("192.0.2.1")))
    frame[position] = byte
    assert arp.parse(bytes(frame)) is None


@given(st.text("abz09-./", max_size=127), st.text("abz09-./", max_size=127))
def test_names_are_short_and_differ(one: str, other: str) -> None:
    names = Names("blue")
    assert len(names.host_link(one)) <= 15
    assert len(names.namespace(one)) <= 80
    assert "/" not in names.namespace(one)
    assert names.network(names.mark(one)) == one
    assert Names("green").network(names.mark(one)) is None
    assert len(names.mark(one)) <= 255
    if one != other:
        assert names.namespace(one) != names.namespace(other)
        assert names.host_link(one) != names.host_link(other)


def test_vips_are_told_from_all_else_on_a_link() -> None:
    own = IPv4Interface("10.99.0.2/24")
    there = [host_interface(IPv4Address("10.99.0.100")), host_interface(IPv6Address("fd99::100"))]
    kernels = [ip_interface("fe80::1/64"), ip_interface("fe80::2/128")]
    former = [ip_interface("10.99.0.9/24"), ip_interface("fd99::9/64")]
    on_link = [own, *there, *kernels, *former]
    assert [str(interface) for interface in there] == ["10.99.0.100/32", "fd99::100/128"]
    assert vips(on_link, [own]) == {interface.ip for interface in there}
    assert strays(on_link, [own]) == former
    assert vips([ip_interface("10.99.0.2/32")], [ip_interface("10.99.0.2/32")]) == frozenset()


def test_names_can_be_read() -> None:
    assert Names("blue").namespace("") == "lb-blue-mgmt"
    assert Names("blue").namespace("default/vlan10").startswith("lb-blue-default-vlan10-")
