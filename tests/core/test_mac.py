import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloudprovider.core.mac import MACAddress


@given(st.binary(min_size=6, max_size=6))
def test_what_is_written_can_be_read(octets: bytes) -> None:
    address = MACAddress.unpack(octets)
    assert MACAddress.parse(str(address)) == MACAddress.parse(str(address).upper().replace(":", "-")) == address
    assert address.packed == octets


@pytest.mark.parametrize("text", ["", "02:00:00:00:00", "02:00:00:00:00:00:01", "2:0:0:0:0:1", "02:00:00:00:00:0g"])
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is no MAC address; write it as"):
        MACAddress.parse(text)


@pytest.mark.parametrize(
    ("text", "unicast"),
    [
        ("02:00:00:00:00:01", True),
        ("00:00:00:00:00:00", False),
        ("ff:ff:ff:ff:ff:ff", False),
        ("01:00:5e:00:00:01", False),
    ],
)
def test_only_the_address_of_one_station_is_unicast(text: str, unicast: bool) -> None:
    assert MACAddress.parse(text).is_unicast is unicast
