"""The checksum of IP, TCP and UDP."""


def internet_checksum(data: bytes) -> int:
    """The Internet checksum (RFC 1071); 0 over data that holds its own."""
    if len(data) % 2:
        data += b"\0"
    # Sixteen-bit words add up modulo 0xffff, and 0x10000 is 1 there: so does one big number (RFC 1071 section 2).
    total = int.from_bytes(data, "big") % 0xFFFF
    # In ones' complement 0 has two forms; only all zeros gives the positive one.
    return 0 if not total and any(data) else 0xFFFF - total
