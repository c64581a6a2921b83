"""Ethernet addresses as values."""

_GROUP_BIT = 0x01
_FORM = "write it as 02:00:00:00:00:01"


class MACAddress(str):
    """An IEEE 802 MAC-48 address: the text "02:00:00:00:00:01", lower-case. Made by :meth:`parse` or :meth:`unpack`."""

    __slots__ = ()

    @classmethod
    def parse(cls, text: str) -> "MACAddress":
        """Read six hexadecimal octets with colons or hyphens between them. Raises ValueError."""
        octets = text.replace("-", ":").split(":")
        try:
            if len(octets) == 6 and all(len(octet) == 2 for octet in octets):
                return cls.unpack(bytes.fromhex("".join(octets)))
        except ValueError:
            pass
        raise ValueError(f'"{text}" is no MAC address; {_FORM}')

    @classmethod
    def unpack(cls, octets: bytes) -> "MACAddress":
        """The address that six octets are. Raises ValueError."""
        if len(octets) != 6:
            raise ValueError(f"a MAC address has 6 octets, not {len(octets)}")
        return cls(octets.hex(":"))

    @property
    def packed(self) -> bytes:
        """Its six octets."""
        return bytes.fromhex(self.replace(":", ""))

    @property
    def is_unicast(self) -> bool:
        """Whether it stands for one station: neither zero, nor broadcast, nor a group."""
        octets = self.packed
        return any(octets) and not octets[0] & _GROUP_BIT
