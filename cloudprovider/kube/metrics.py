"""What a client counts: the price of a Service is stated in API requests."""

from collections import Counter
from typing import NamedTuple


class Request(NamedTuple):
    """The labels of one request: ``verb`` as RBAC names it (but ``apply`` apart from ``patch``), ``resource`` the
    plural with its subresource ("loadbalancers/status"), ``code`` the HTTP status, 0 when there was no answer."""

    verb: str
    resource: str
    code: int


class RequestCounter:
    """Requests to one API server since the program started."""

    def __init__(self) -> None:
        self._counts: Counter[Request] = Counter()

    def count(self, verb: str, resource: str, code: int) -> None:
        """Count one request."""
        self._counts[Request(verb, resource, code)] += 1

    def snapshot(self) -> dict[Request, int]:
        """All counts as of now."""
        return dict(self._counts)

    def total(self, *, verb: str | None = None, resource: str | None = None, code: int | None = None) -> int:
        """How many requests carry all the labels given."""
        return sum(
            n
            for request, n in self._counts.items()
            if (verb is None or request.verb == verb)
            and (resource is None or request.resource == resource)
            and (code is None or request.code == code)
        )


def exposition(requests: RequestCounter) -> str:
    """The counts in Prometheus' text format."""
    lines = [
        "# HELP cloudprovider_kube_requests_total Requests to the API server.",
        "# TYPE cloudprovider_kube_requests_total counter",
    ]
    lines += [
        f'cloudprovider_kube_requests_total{{verb="{r.verb}",resource="{r.resource}",code="{r.code}"}} {count}'
        for r, count in sorted(requests.snapshot().items())
    ]
    return "\n".join(lines) + "\n"
