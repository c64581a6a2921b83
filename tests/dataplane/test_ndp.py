"""Neighbor Discovery frames, without a kernel."""

from dataclasses import replace
from ipaddress import IPv6Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloudprovider.dataplane import ndp
from cloudprovider.dataplane.heard import Heard

MAC = bytes.fromhex("020000000001")
OTHER = bytes.fromhex("020000000002")
VIP = IPv6Address("2001:db8::aa:bb01")
HEADERS = 14 + 40
UNICAST = st.ip_addresses(v=6).filter(lambda a: not a.is_multicast and not a.is_unspecified)


def signed(frame: bytes) -> bytes:
    """The frame with its payload length and ICMPv6 checksum made right (RFC 8200 section 8.1), word by word."""
    ends, message = frame[22:54], frame[54:56] + b"\0\0" + frame[58:]
    pseudo = ends + len(message).to_bytes(4, "big") + bytes([0, 0, 0, 58]) + message + bytes(len(message) % 2)
    total = sum(int.from_bytes(pseudo[i : i + 2], "big") for i in range(0, len(pseudo), 2))
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    checksum = (total ^ 0xFFFF).to_bytes(2, "big")
    return frame[:18] + len(message).to_bytes(2, "big") + frame[20:54] + message[:2] + checksum + message[4:]


def changed(frame: bytes, position: int, new: bytes) -> bytes:
    return frame[:position] + new + frame[position + len(new) :]


def solicitation(source: IPv6Address, target: IPv6Address, option: bytes = b"") -> bytes:
    return signed(changed(ndp.probe(MAC, target), 22, source.packed) + option)


def test_a_probe_is_what_rfc_4862_says() -> None:
    assert ndp.probe(MAC, VIP).hex() == (
        "3333ffaabb01" "020000000001" "86dd"
        "60000000" "0018" "3a" "ff" + bytes(16).hex() + "ff0200000000000000000001ffaabb01"
        "8700" + ndp.probe(MAC, VIP)[56:58].hex() + "00000000" + VIP.packed.hex()
    )  # fmt: skip


def test_an_announcement_is_what_rfc_4861_says() -> None:
    assert ndp.announcement(MAC, VIP).hex() == (
        "333300000001" "020000000001" "86dd"
        "60000000" "0020" "3a" "ff" + VIP.packed.hex() + "ff020000000000000000000000000001"
        "8800" + ndp.announcement(MAC, VIP)[56:58].hex() + "20000000" + VIP.packed.hex() + "0201" "020000000001"
    )  # fmt: skip


@given(st.binary(min_size=6, max_size=6), UNICAST)
def test_what_is_sent_has_its_checksum_and_is_understood(mac: bytes, address: IPv6Address) -> None:
    probe, announcement = ndp.probe(mac, address), ndp.announcement(mac, address)
    assert signed(probe) == probe
    assert signed(announcement) == announcement
    heard = ndp.parse(probe + bytes(6))  # Ethernet may pad
    assert heard == Heard(mac=mac.hex(":"), sender=IPv6Address(0), target=address)
    assert heard.is_probe
    assert ndp.parse(announcement) == Heard(mac=mac.hex(":"), sender=address, target=address)


def test_a_machine_is_known_by_its_option_and_else_by_its_frame() -> None:
    asker = IPv6Address("2001:db8::5")
    assert ndp.parse(solicitation(asker, VIP)) == Heard(mac=MAC.hex(":"), sender=asker, target=VIP)
    asked = ndp.parse(solicitation(asker, VIP, b"\1\1" + OTHER))
    assert asked == Heard(mac=OTHER.hex(":"), sender=asker, target=VIP, honest=False)
    bare = signed(ndp.announcement(MAC, VIP)[:-8])
    assert ndp.parse(bare) == Heard(mac=MAC.hex(":"), sender=VIP, target=VIP)
    strange = signed(bare + b"\x0e\1" + bytes(6) + b"\2\1" + OTHER)
    assert ndp.parse(strange) == Heard(mac=OTHER.hex(":"), sender=VIP, target=VIP, honest=False)


def test_a_question_is_asked_from_an_address_of_its_own() -> None:
    """From nobody it would be a probe, and who is just looking for duplicates would give its address up."""
    asker = IPv6Address("fe80::ff:fe00:1")
    everybody, one = ndp.question(MAC, VIP, to=None), ndp.question(MAC, VIP, to=OTHER)
    assert everybody[:6].hex() == "3333ffaabb01"
    assert IPv6Address(everybody[38:54]) == IPv6Address("ff02::1:ffaa:bb01")
    assert one[:6] == OTHER
    assert IPv6Address(one[38:54]) == VIP
    for frame in (everybody, one):
        assert signed(frame) == frame
        heard = ndp.parse(frame)
        assert heard == Heard(mac=MAC.hex(":"), sender=asker, target=VIP)
        assert not heard.is_probe


@pytest.mark.parametrize(
    "frame",
    [
        pytest.param(changed(ndp.probe(MAC, VIP), 12, b"\x08"), id="not IPv6"),
        pytest.param(changed(ndp.probe(MAC, VIP), 14, b"\x40"), id="version 4"),
        pytest.param(changed(ndp.probe(MAC, VIP), 20, b"\x11"), id="not ICMPv6"),
        pytest.param(changed(ndp.probe(MAC, VIP), 21, b"\xfe"), id="passed on by a router"),
        pytest.param(changed(ndp.probe(MAC, VIP), 70, b"\x77"), id="checksum"),
        pytest.param(ndp.probe(MAC, VIP)[:-1], id="cut off"),
        pytest.param(signed(changed(ndp.probe(MAC, VIP), 54, b"\x80")), id="echo request"),
        pytest.param(signed(changed(ndp.probe(MAC, VIP), 55, b"\x01")), id="code"),
        pytest.param(signed(changed(ndp.probe(MAC, VIP), 62, b"\xff")), id="multicast target"),
        pytest.param(signed(changed(ndp.probe(MAC, VIP), 53, b"\x02")), id="probe to another group"),
        pytest.param(signed(ndp.probe(MAC, VIP) + b"\1\1" + OTHER), id="probe with a source option"),
        pytest.param(signed(changed(ndp.announcement(MAC, VIP), 58, b"\x60")), id="solicited, to everybody"),
        pytest.param(signed(ndp.announcement(MAC, VIP) + b"\x0e\0" + bytes(6)), id="option of no length"),
        pytest.param(signed(ndp.announcement(MAC, VIP) + b"\x0e\2" + bytes(6)), id="option cut off"),
        pytest.param(signed(ndp.announcement(MAC, VIP) + b"\x0e"), id="half an option"),
        pytest.param(solicitation(IPv6Address("ff02::1"), VIP), id="multicast source"),
    ],
)
def test_what_is_not_valid_is_ignored(frame: bytes) -> None:
    assert ndp.parse(frame) is None


@given(st.binary(max_size=120))
def test_noise_is_ignored(data: bytes) -> None:
    assert ndp.parse(data) is None


@given(st.integers(0, 85), st.integers(1, 255))
def test_no_damage_makes_a_frame_say_something_else(position: int, damage: int) -> None:
    """A single wrong byte is always found out, or means nothing; in the Ethernet source it shows."""
    frame = ndp.announcement(MAC, VIP)
    broken = bytearray(frame)
    broken[position] ^= damage
    heard = ndp.parse(bytes(broken))
    assert heard is None or heard.honest != (6 <= position < 12)
    assert heard is None or replace(heard, honest=True) == ndp.parse(frame)
