"""How a block's addresses are written: just as Python's ``ipaddress`` does, which follows RFC 5952."""

from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloudprovider.core.blocktext import BlockText
from cloudprovider.core.ranges import BlockId, block_of, to_address

groups = st.sampled_from([0, 0, 0, 1, 0xAB, 0xFFFF]) | st.integers(0, 0xFFFF)
"""Many zeros, which is what compression is about."""
sixes = st.tuples(*[groups] * 8).map(lambda parts: IPv6Address(b"".join(part.to_bytes(2) for part in parts)))
addresses = sixes | st.integers(0, 2**32 - 1).map(IPv4Address)


def check_all(block: BlockId) -> None:
    text = BlockText(block)
    for offset in range(256):
        address = to_address(block.version, block.first + offset)
        assert text.write(address) == str(address)
        assert text.read(str(address)) == address


@given(addresses.map(block_of))
def test_every_address_of_a_block_is_written_and_read_as_ipaddress_does(block: BlockId) -> None:
    check_all(block)


@pytest.mark.parametrize(
    "first",
    [
        "10.0.0.0",
        "0.0.0.0",
        "255.255.255.0",
        "::",
        "::100",
        "::ffff:0:0",
        "::ffff:a00:100",
        "fd00::",
        "fd00::ff00",
        "1:2:3:4:5:6:7:0",
        "1:2:3:4:5:6:0:0",
        "1:0:0:4:5:6:0:0",
        "0:0:3:4:5:6:0:0",
        "1:0:0:4:5:6:7:100",
        "1:0:0:4::",
    ],
)
def test_where_the_zeros_that_are_left_out_change(first: str) -> None:
    check_all(block_of(ip_address(first)))


@given(addresses, addresses)
def test_an_address_of_another_block_is_none_of_it(one: IPv4Address | IPv6Address, other: IPv4Address) -> None:
    if block_of(one) != block_of(other):
        assert BlockText(block_of(one)).read(str(other)) is None


@given(sixes)
def test_what_is_written_in_another_way_is_not_read(address: IPv6Address) -> None:
    text = BlockText(block_of(address))
    for other in (address.exploded, str(address).upper(), f" {address}", f"{address}%1", f"{address}/128"):
        assert other == str(address) or text.read(other) is None


@pytest.mark.parametrize(
    ("first", "text"),
    [
        *(("10.0.0.0", t) for t in ("", "10.0.0.", "10.0.0.00", "10.0.0.07", "10.0.0.256", "10.0.0.-1", "10.0.0.1.2")),
        *(("fd00::", t) for t in ("fd00::0", "fd00::00", "fd00::01", "fd00::0:1", "fd00:0::1", "fd00::100", "fd00:::")),
        *(("fd00::100", t) for t in ("fd00::", "fd00::1", "fd00::10", "fd00::1ab:0", "fd00::0100", "fd00::1AB")),
    ],
)
def test_what_is_no_address_of_the_block_is_not_read(first: str, text: str) -> None:
    assert BlockText(block_of(ip_address(first))).read(text) is None
