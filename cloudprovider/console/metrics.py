"""What the console counts: requests by page, never by what is looked at."""

from time import monotonic
from typing import Final

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from cloudprovider.core.metrics import console as metrics
from cloudprovider.kube.registry import Registry

UNMATCHED: Final = "unmatched"
_METHODS: Final = frozenset({"GET", "HEAD", "POST"})


class ConsoleMetrics:
    """Exported by ``registry``."""

    def __init__(self, registry: Registry) -> None:
        self._requests = registry.counter(metrics.REQUESTS)
        self._seconds = registry.histogram(metrics.REQUEST_SECONDS)

    def middleware(self) -> Middleware:
        """The outermost of the application's: sees what is really answered."""

        @web.middleware
        async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
            began = monotonic()
            code = 0  # nobody was there any more
            try:
                response = await handler(request)
                code = response.status
            except web.HTTPException as error:
                code = error.status
                raise
            else:
                return response
            finally:
                self._count(request, code, monotonic() - began)

        return middleware

    def _count(self, request: web.Request, code: int, seconds: float) -> None:
        resource = request.match_info.route.resource
        route = UNMATCHED if resource is None else resource.canonical
        self._requests.labels(request.method if request.method in _METHODS else "other", route, str(code)).inc()
        if not route.startswith("/live/"):
            self._seconds.labels(route).observe(seconds)
