"""What the guest program remembers of a Service it looks after, beyond what the API servers know.

Nothing here is needed to be right: after a restart it is found out again. It saves requests, and tells our own
writes from somebody else's.
"""

from dataclasses import dataclass, field

from cloudprovider.core.api.kubernetes import LoadBalancerIngress
from cloudprovider.core.exchange import LoadBalancerRequest, ServiceKey
from cloudprovider.guest.servicestatus import Problem


@dataclass
class Record:
    """One Service, by UID. Times are the event loop's.

    ``accepted``: the last request the host took, in ``session`` of the stream. ``refused``: the last it did not, and
    why; it is not asked again until ``refused_until`` (None: until something changes). ``waiting_since``: something
    is not yet as it should be since. ``deleting``: the session in which the host took the deletion, and how many
    ``removals`` (the host's "gone") had been heard before. ``wrote``: the addresses last written; ``cleared``: how
    often somebody emptied them, last at ``cleared_at``. ``orphans``: namesakes whose deletion was asked for.
    """

    key: ServiceKey
    first_seen: float
    session: int = 0
    accepted: LoadBalancerRequest | None = None
    refused: tuple[LoadBalancerRequest, Problem] | None = None
    refused_until: float | None = None
    waiting_since: float | None = None
    deleting: tuple[int, int] | None = None
    removals: int = 0
    wrote: tuple[LoadBalancerIngress, ...] | None = None
    cleared: int = 0
    cleared_at: float = 0.0
    published: bool = False
    orphans: set[ServiceKey] = field(default_factory=set)

    def accept(self, request: LoadBalancerRequest, session: int) -> None:
        """The host has taken ``request``."""
        self.forget_request()
        self.accepted, self.session = request, session

    def refuse(self, request: LoadBalancerRequest, problem: Problem, session: int, until: float | None) -> None:
        """The host does not take ``request``."""
        self.forget_request()
        self.refused, self.refused_until, self.session = (request, problem), until, session

    def forget_request(self) -> None:
        """Have the host asked again, whatever it said."""
        self.accepted = None
        self.refused = None
        self.refused_until = None
