"""The seam to what speaks BGP on one network, met by the real one (:mod:`cloudprovider.routing.bgpd`) and by the
shipped fake (:mod:`cloudprovider.routing.fake`)."""

from collections.abc import Callable, Mapping
from typing import Protocol

from cloudprovider.core.bgp import Speech
from cloudprovider.core.bgpsessions import Session


class Speaker(Protocol):
    """Speaks to routers. All but ``run`` return at once; it speaks while ``run`` runs.

    Whatever it is told: it takes no route from anybody, puts none into a kernel, and says no address but those of the
    speech.
    """

    def speak(self, speech: Speech | None) -> None:
        """Say this; the whole each time, of which only what differs is done. None: speak to nobody. Until the first
        call, what an engine says that outlived an agent before goes on."""
        ...

    def lost(self, name: str) -> None:
        """It is known, sooner than by the session itself, that a router is gone: the session with it ends now."""
        ...

    @property
    def sessions(self) -> Mapping[str, Session]:
        """How it stands with the routers of the speech, by name; empty where that is not known."""
        ...

    @property
    def trouble(self) -> str:
        """Why nothing is said, though there is something to say; "" where all is well."""
        ...

    def on_change(self, callback: Callable[[], None]) -> None:
        """Call back, in the event loop, when ``sessions`` or ``trouble`` have changed. One callback: the last given."""
        ...

    async def run(self) -> None:
        """Speak until cancelled. Routers are told then that it stops (RFC 8326), and have a moment to find other
        ways."""
        ...
