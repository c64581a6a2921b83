"""The list of load balancers, and its live rows."""

from collections.abc import Iterable
from dataclasses import replace

from aiohttp import web

from cloudprovider.console import rows
from cloudprovider.console.gate import is_partial, session_of
from cloudprovider.console.guests import clusters_topic, visible_clusters
from cloudprovider.console.live import Beside, Followed, Streams, Topic
from cloudprovider.console.namespaces import visible_namespaces
from cloudprovider.console.pages import Pages, told
from cloudprovider.console.rows import Query, Row
from cloudprovider.core.api.guestcluster import GuestCluster
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
        problem, found, clusters = "", [], Followed[GuestCluster]()
        try:
            listed = await session.client.list(LOADBALANCERS, query.namespace)
            found = [rows.row_of(lb) for lb in listed.items]
            clusters = await visible_clusters(session, query.namespace)
        except Forbidden as error:
            if error.status == 401:
                raise
            problem = told(error)[1]
        values = {**self._values(found, clusters, query), "problem": problem}
        if is_partial(request):
            return self._pages.page(request, "list-part.html", values)
        values["namespaces"] = await visible_namespaces(session)
        return self._pages.page(request, "list.html", values)

    async def live(self, request: web.Request) -> web.StreamResponse:
        """The rows, whenever they change."""
        query = Query.of(request.query)
        guests = Beside(clusters_topic(query.namespace))

        async def render(known: Followed[Row]) -> str:
            return self._pages.render("list-rows.html", self._values(known.values(), guests.into, query, known.problem))

        topic = Topic(resource=LOADBALANCERS, namespace=query.namespace, keep=rows.row_of)
        return await self._streams.serve(request, topic, render, guests)

    def _values(
        self, found: Iterable[Row], clusters: Followed[GuestCluster], query: Query, stale: str = ""
    ) -> dict[str, object]:
        view = rows.view((rows.in_cluster(row, clusters) for row in found), query)
        query = replace(query, page=view.page)
        hidden = clusters.problem if any(row.guest for row in view.rows) else ""
        return {
            "view": view,
            "query": query,
            "columns": rows.COLUMNS,
            "words": rows.WORDS,
            "stale": stale,
            "hidden": hidden,
        }
