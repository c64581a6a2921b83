"""What a frame of ARP or of Neighbor Discovery tells about who has an address."""

from dataclasses import dataclass

from cloudprovider.core.plan import IPAddress


@dataclass(frozen=True, slots=True)
class Heard:
    """The machine ``mac`` says that it has ``sender`` (unspecified: it has none yet), and is about ``target``.

    ``honest``: the frame came from that very machine, going by its Ethernet source.
    """

    mac: str
    sender: IPAddress
    target: IPAddress
    honest: bool = True

    @property
    def is_probe(self) -> bool:
        """Asked by somebody who wants to use the target address, and has not got it yet (RFC 5227 section 1.1,
        RFC 4862 section 5.4.3)."""
        return self.sender.is_unspecified
