"""Pools: their list, the map of each one's addresses, and giving a dangling one back."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from aiohttp import web

from cloudprovider.console.editor import go, posted_of
from cloudprovider.console.gate import session_of
from cloudprovider.console.pages import Pages
from cloudprovider.console.poolmap import Map, PoolMaps, Record, part_of
from cloudprovider.console.pools import blocks_of, visible_pools
from cloudprovider.console.sessions import Session
from cloudprovider.console.users import may
from cloudprovider.core.api.pool import MANUALLY_RELEASE_ANNOTATION, IPPool
from cloudprovider.core.errors import Forbidden, Invalid, InvalidRequest, KubeError, NotFound
from cloudprovider.core.pools import survey
from cloudprovider.core.ranges import Segment
from cloudprovider.core.rules.holdings import holdings
from cloudprovider.core.rules.release import check_release, parse_release
from cloudprovider.core.rules.verdict import Verdict
from cloudprovider.kube.resources import IPPOOLS, LOADBALANCERS

SHOWN: Final = 50
"""Holders in one table; a part of the map, or a filter, shows others."""


@dataclass(frozen=True)
class Usage:
    """A pool in the list."""

    pool: IPPool
    taken: int
    total: int

    @property
    def percent(self) -> int:
        """How much of it is taken."""
        return self.taken * 100 // self.total if self.total else 0


class PoolPages:
    """The list and the maps."""

    def __init__(self, pages: Pages) -> None:
        self._pages = pages

    def routes(self) -> list[web.RouteDef]:
        """What is served."""
        return [
            web.get("/pools", self.list),
            web.get("/pools/{name}", self.show),
            web.get("/pools/{name}/release", self.confirm_release),
            web.post("/pools/{name}/release", self.release),
        ]

    async def list(self, request: web.Request) -> web.Response:
        """All pools that the user may see."""
        session = session_of(request)
        pools, problem = await visible_pools(session)
        found = [Usage(p, p.status.total - p.status.available, p.status.total) for p in pools]
        creates = await may(session.client, "create", IPPOOLS)
        values = {"pools": found, "problem": problem, "may_create": creates}
        return self._pages.page(request, "pools.html", values)

    async def show(self, request: web.Request) -> web.Response:
        """One pool: its maps, or the map of a part, and who has what in it."""
        session, name = session_of(request), request.match_info["name"]
        pool = await session.client.get(IPPOOLS, "", name)
        blocks, problem = await blocks_of(session, name)
        pools, _ = await visible_pools(session)
        view = survey(pools or [pool])[name] if not pools or any(p.metadata.name == name for p in pools) else None
        view = view or survey([pool])[name]
        part, text = part_of(request.query.get("part", "")), request.query.get("q", "").strip()[:200]
        edits, deletes = await asyncio.gather(
            may(session.client, "patch", IPPOOLS, "", name), may(session.client, "delete", IPPOOLS, "", name)
        )
        # Half a second of arithmetic where 65,000 addresses are held: others have pages meanwhile.
        maps, drawn, records = await asyncio.to_thread(_draw, PoolMaps(view, blocks), part, text)
        values: dict[str, object] = {
            "pool": pool,
            "view": view,
            "maps": drawn,
            "part": request.query.get("part", "") if part is not None else "",
            "text": text,
            "records": records[:SHOWN],
            "found": len(records),
            "held": len(maps.held),
            "size": maps.size,
            "problem": problem,
            "may_edit": edits,
            "may_delete": deletes,
            "ordered": pool.metadata.annotations.get(MANUALLY_RELEASE_ANNOTATION, ""),
        }
        return self._pages.page(request, "pool.html", values)

    async def confirm_release(self, request: web.Request) -> web.Response:
        """Ask whether it is meant, and say what is against it."""
        return await self._release_page(request, _order(request.query))

    async def release(self, request: web.Request) -> web.Response:
        """Order it, by Harvester's annotation; the controller does it."""
        session, name, text = session_of(request), request.match_info["name"], _order(await posted_of(request))
        verdict = await self._judge(session, name, text)
        if verdict.violations:
            return await self._release_page(request, text, status=422)
        pool = await session.client.get(IPPOOLS, "", name)
        annotations = {MANUALLY_RELEASE_ANNOTATION: text}
        patch = {"metadata": {"uid": pool.metadata.uid, "annotations": annotations}}
        try:
            await session.client.merge_patch(IPPOOLS, "", name, patch)
        except Invalid as error:
            told = "; ".join(c.message for c in error.causes) or str(error)
            return await self._release_page(request, text, refused=told, status=422)
        return go(request, f"/pools/{name}")

    async def _release_page(
        self, request: web.Request, text: str, *, refused: str = "", status: int = 200
    ) -> web.Response:
        session, name = session_of(request), request.match_info["name"]
        verdict = await self._judge(session, name, text)
        address, _, owner = text.rpartition(": ")
        values = {"name": name, "address": address, "owner": owner, "verdict": verdict, "refused": refused}
        return self._pages.page(request, "pool-release.html", values, status=status)

    async def _judge(self, session: Session, name: str, text: str) -> Verdict:
        """As the webhook does, as far as the user may know."""
        try:
            order = parse_release(text)
        except InvalidRequest as wrong:
            return Verdict(wrong.violations)
        blocks, problem = await blocks_of(session, name)
        if problem:
            return Verdict(warnings=(problem,))
        exists = True
        warnings: tuple[str, ...] = ()
        try:
            await session.client.get(LOADBALANCERS, order.namespace, order.name)
        except NotFound:
            exists = False
        except Forbidden as error:
            if error.status == 401:
                raise
            exists, warnings = False, ("You may not see whether that load balancer still exists.",)
        except KubeError as error:
            return Verdict(warnings=(str(error),))
        return check_release(order, holdings(blocks), exists=exists) + Verdict(warnings=warnings)


def _draw(maps: PoolMaps, part: Segment | None, text: str) -> tuple[PoolMaps, Sequence[Map], Sequence[Record]]:
    drawn = [maps.part(part)] if part is not None else maps.overview()
    words = text.lower().split()
    records = [r for r in maps.records(part) if all(w in r.holding.text.lower() for w in words)]
    return maps, drawn, records


def _order(source: Mapping[str, str]) -> str:
    """The annotation's value."""
    return f"{source.get('address', '')}: {source.get('owner', '')}"
