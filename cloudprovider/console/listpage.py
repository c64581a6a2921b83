"""The list of load balancers, and its live rows."""

from collections.abc import Iterable
from dataclasses import replace

from aiohttp import web

from cloudprovider.console import rows
from cloudprovider.console.gate import is_partial, session_of
from cloudprovider.console.live import Followed, Streams, Topic
from cloudprovider.console.namespaces import visible_namespaces
from cloudprovider.console.pages import Pages, told
from cloudprovider.console.rows import Query, Row
from cloudprovider.core.errors import Forbidden
from cloudprovider.kube.resources import LOADBALANCERS


class ListPage:
    """ "Networks > Load Balancers"."""

    def __init__(self, pages: Pages, streams: Streams) -> None:
        self._pages = pages
        self._streams = streams

    def routes(self) -> list[web.RouteDef]:
        """What is served."""
        return [
            web.get("/", self.home),
            web.get("/loadbalancers", self.show),
            web.get("/live/loadbalancers", self.live),
        ]

    async def home(self, _: web.Request) -> web.Response:
        """The list is the first page."""
        return web.Response(status=303, headers={"Location": "/loadbalancers"})

    async def show(self, request: web.Request) -> web.Response:
        """The page, or only the list when a filter has changed."""
        session, query = session_of(request), Query.of(request.query)
        if query.namespace:
            session.remember(query.namespace)
        problem, found = "", []
        try:
            listed = await session.client.list(LOADBALANCERS, query.namespace)
            found = [rows.row_of(lb) for lb in listed.items]
        except Forbidden as error:
            if error.status == 401:
                raise
            problem = told(error)[1]
        values = {**self._values(found, query), "problem": problem}
        if is_partial(request):
            return self._pages.page(request, "list-part.html", values)
        values["namespaces"] = await visible_namespaces(session)
        return self._pages.page(request, "list.html", values)

    async def live(self, request: web.Request) -> web.StreamResponse:
        """The rows, whenever they change."""
        query = Query.of(request.query)

        async def render(known: Followed[Row]) -> str:
            return self._pages.render("list-rows.html", self._values(known.values(), query, known.problem))

        topic = Topic(resource=LOADBALANCERS, namespace=query.namespace, keep=rows.row_of)
        return await self._streams.serve(request, topic, render)

    def _values(self, found: Iterable[Row], query: Query, stale: str = "") -> dict[str, object]:
        view = rows.view(found, query)
        query = replace(query, page=view.page)
        return {"view": view, "query": query, "columns": rows.COLUMNS, "words": rows.WORDS, "stale": stale}
