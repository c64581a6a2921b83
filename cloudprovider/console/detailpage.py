"""The page of one load balancer, with what is live on it."""

import asyncio
from typing import Final

from aiohttp import web

from cloudprovider.console import detail, rows
from cloudprovider.console.gate import session_of
from cloudprovider.console.guests import clusters_topic, visible_clusters
from cloudprovider.console.live import Beside, Followed, Streams, Topic
from cloudprovider.console.pages import Pages, told
from cloudprovider.console.pools import visible_pools
from cloudprovider.console.sessions import Session
from cloudprovider.console.traffic import TrafficReader
from cloudprovider.console.users import may
from cloudprovider.core.api.guestcluster import GuestCluster
from cloudprovider.core.api.kubernetes import Event
from cloudprovider.core.api.loadbalancer import LoadBalancer
from cloudprovider.core.errors import Forbidden, KubeError
from cloudprovider.core.overview import cluster_key, guest_cluster_of, health_of
from cloudprovider.kube.resources import EVENTS, LOADBALANCERS

SHOWN_EVENTS: Final = 30


class DetailPage:
    """One load balancer."""

    def __init__(self, pages: Pages, streams: Streams, traffic: TrafficReader) -> None:
        self._pages = pages
        self._streams = streams
        self._traffic = traffic

    def routes(self) -> list[web.RouteDef]:
        """What is served."""
        one = "/loadbalancers/{namespace}/{name}"
        return [
            web.get(one, self.show),
            web.get(f"/live{one}", self.live),
            web.get(f"/live{one}/traffic", self.traffic),
            web.get(f"/live{one}/events", self.events),
        ]

    async def show(self, request: web.Request) -> web.Response:
        """The page."""
        session = session_of(request)
        lb = await _get(session, request)
        session.remember(lb.metadata.namespace)
        edits, deletes = await asyncio.gather(
            may(session.client, "patch", LOADBALANCERS, *lb.key), may(session.client, "delete", LOADBALANCERS, *lb.key)
        )
        cluster = cluster_key(lb)[1]
        clusters = await visible_clusters(session, lb.metadata.namespace, cluster) if cluster else Followed()
        values = await self._values(session, lb, clusters)
        values |= {
            "may_edit": edits and lb.spec.workload_type != "cluster",
            "may_delete": deletes,
            "guest": rows.guest_name(lb),
            "cluster": cluster,
        }
        return self._pages.page(request, "lb.html", values)

    async def live(self, request: web.Request) -> web.StreamResponse:
        """Where it stands, whenever that changes."""
        session = session_of(request)
        namespace, name = request.match_info["namespace"], request.match_info["name"]

        cluster = request.query.get("cluster", "")
        guests = Beside(clusters_topic(namespace, cluster))

        async def render(known: Followed[LoadBalancer]) -> str:
            lb = known.get((namespace, name))
            if lb is None:
                return self._pages.render("lb-gone.html", {"problem": known.problem})
            return self._pages.render("lb-status.html", await self._values(session, lb, guests.into, known.problem))

        topic = Topic(resource=LOADBALANCERS, namespace=namespace, name=name, keep=_whole)
        return await self._streams.serve(request, topic, render, guests if cluster else None)

    async def traffic(self, request: web.Request) -> web.Response:
        """The counters."""
        lb = await _get(session_of(request), request)
        node = lb.status.holder.node if lb.status.holder is not None else ""
        found = await self._traffic.of(node, "/".join(lb.key))
        return self._pages.page(request, "lb-traffic.html", {"traffic": found, "node": node})

    async def events(self, request: web.Request) -> web.Response:
        """What has been told about it."""
        session = session_of(request)
        lb = await _get(session, request)
        found: list[Event] = []
        problem = ""
        try:
            selector = f"involvedObject.uid={lb.metadata.uid}"
            listed = await session.client.list(EVENTS, lb.metadata.namespace, field_selector=selector)
            found = sorted(listed.items, key=_time_of, reverse=True)[:SHOWN_EVENTS]
        except Forbidden as error:
            if error.status == 401:
                raise
            problem = "You may not read events of this namespace."
        return self._pages.page(request, "lb-events.html", {"events": found, "time_of": _time_of, "problem": problem})

    async def _values(
        self, session: Session, lb: LoadBalancer, clusters: Followed[GuestCluster], stale: str = ""
    ) -> dict[str, object]:
        now = self._pages.now()
        reasons, pools_problem = await self._pool_reasons(session, lb)
        cluster = guest_cluster_of(lb, clusters)
        counted = health_of(lb, cluster)
        state, word, reason = detail.heading(lb, counted)
        return {
            "lb": lb,
            "state_name": state,
            "word": word,
            "reason": reason,
            "steps": detail.steps(lb),
            "backends": detail.backends(lb, cluster, now),
            "pool_reasons": reasons,
            "pools_problem": pools_problem,
            "counted": counted,
            "hidden": clusters.problem if lb.spec.workload_type == "cluster" else "",
            "stale": stale,
        }

    async def _pool_reasons(self, session: Session, lb: LoadBalancer) -> tuple[object, str]:
        """Pool by pool; or nothing, and why."""
        if lb.status.addresses or lb.spec.ipam == "dhcp" or lb.spec.workload_type == "cluster":
            return (), ""
        try:
            pools, problem = await visible_pools(session)
        except KubeError as error:
            return (), told(error)[1]
        return await asyncio.to_thread(detail.pool_reasons, lb, pools), problem


async def _get(session: Session, request: web.Request) -> LoadBalancer:
    return await session.client.get(LOADBALANCERS, request.match_info["namespace"], request.match_info["name"])


def _whole(lb: LoadBalancer) -> LoadBalancer:
    return lb


def _time_of(event: Event) -> str:
    return event.last_timestamp or event.first_timestamp or event.metadata.creation_timestamp
