"""Who is told of calls that have ended and of certificates, for metrics. Must neither block nor fail.

``method`` is the RPC's name, ``code`` that of the gRPC status ("OK", "UNAVAILABLE"), ``seconds`` None for a stream.
"""

from collections.abc import Mapping
from datetime import datetime
from typing import Protocol

from cloudprovider.core.exchange import Tenant


class ClientObserver(Protocol):
    """On the guest's side."""

    def called(self, method: str, code: str, seconds: float | None) -> None:
        """A call has ended."""
        ...

    def certified(self, not_after: datetime) -> None:
        """This is when the client certificate ends that is used from now on."""
        ...


class ServerObserver(Protocol):
    """On the host's side."""

    def served(self, tenant: Tenant | None, method: str, code: str, seconds: float | None) -> None:
        """A call of ``tenant`` (None: nobody that is known) has ended."""
        ...

    def shown(self, tenant: Tenant, not_after: datetime) -> None:
        """A tenant that is known has called with a certificate that ends then."""
        ...

    def certified(self, not_after: datetime) -> None:
        """This is when the bridge's certificate ends that is used from now on. Told in any thread."""
        ...

    def streams(self, open_streams: Mapping[Tenant, int]) -> None:
        """So many streams are open now, by tenant; tenants without any are not named."""
        ...


class Unobserved:
    """Nobody looks. Meets both."""

    def called(self, method: str, code: str, seconds: float | None) -> None:
        """See ClientObserver."""

    def served(self, tenant: Tenant | None, method: str, code: str, seconds: float | None) -> None:
        """See ServerObserver."""

    def shown(self, tenant: Tenant, not_after: datetime) -> None:
        """See ServerObserver."""

    def certified(self, not_after: datetime) -> None:
        """See ClientObserver and ServerObserver."""

    def streams(self, open_streams: Mapping[Tenant, int]) -> None:
        """See ServerObserver."""
