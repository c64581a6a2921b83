"""Creating, editing and deleting a pool."""

import asyncio
from collections.abc import Mapping
from typing import Final

from aiohttp import web

from cloudprovider.console import poolform
from cloudprovider.console.editor import Pathways
from cloudprovider.console.poolform import PoolForm
from cloudprovider.console.pools import held_of, networks_of, visible_pools
from cloudprovider.console.sessions import Session
from cloudprovider.core.api.pool import IPPool
from cloudprovider.core.rules.pools import check_deletion, check_pool, looks_at_holders
from cloudprovider.core.rules.verdict import Verdict
from cloudprovider.kube.resources import IPPOOLS

WAYS: Final = Pathways(
    name="pool",
    listing="/pools",
    one="/pools/{name}",
    aliases=poolform.ALIASES,
    titles=poolform.TITLES,
    tabs={"ranges": "Ranges", "who": "Who may use it", "reservations": "Reservations"},
    tab_of={
        "network": "who",
        "priority": "who",
        "scope": "who",
        "addressesPerTenant": "who",
        "reservations": "reservations",
    },
)


class PoolKind:
    """The form of a pool."""

    resource: Final = IPPOOLS
    form: Final = PoolForm
    ways: Final = WAYS

    def blank(self, request: web.Request) -> PoolForm:
        """A new form."""
        del request
        return PoolForm.blank()

    def key(self, source: Mapping[str, str]) -> tuple[str, str]:
        """Pools are in no namespace."""
        return "", source.get("name", "")

    def require_editable(self, obj: IPPool) -> None:
        """All are."""

    async def judge(self, session: Session, wanted: IPPool, old: IPPool | None) -> Verdict:
        """As the webhook does, with the pools and records that the user may read."""
        pools, _ = await visible_pools(session)
        held = await held_of(session, wanted.metadata.name) if looks_at_holders(wanted, old) else ()
        return await asyncio.to_thread(check_pool, wanted, old, pools, held)

    async def judge_deletion(self, session: Session, obj: IPPool) -> Verdict:
        """A pool in use stays."""
        return check_deletion(obj.metadata.name, await held_of(session, obj.metadata.name))

    async def choices(self, session: Session, form: PoolForm, old: IPPool | None) -> dict[str, object]:
        """Networks that pools are on."""
        del form, old
        pools, _ = await visible_pools(session)
        return {"networks": networks_of(pools)}

    async def matches(self, session: Session, form: PoolForm) -> dict[str, object]:
        """Nothing."""
        del session, form
        return {}
