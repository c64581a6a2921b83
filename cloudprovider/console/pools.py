"""Pools as a user may read them."""

from collections.abc import Iterable, Sequence

from cloudprovider.console.sessions import Session
from cloudprovider.core.api.pool import BLOCK_POOL_LABEL, IPBlock, IPPool
from cloudprovider.core.errors import Forbidden, NotFound
from cloudprovider.core.naming import label_value
from cloudprovider.core.rules.holdings import Holding, holdings
from cloudprovider.kube.resources import IPBLOCKS, IPPOOLS


async def visible_pools(session: Session) -> tuple[Sequence[IPPool], str]:
    """Return all pools by name, or none and why not."""
    try:
        listed = await session.client.list(IPPOOLS)
    except Forbidden as error:
        if error.status == 401:
            raise
        return (), "You may not list pools: type the name of one, or leave it out."
    except NotFound:
        return (), "There are no pools: the definitions are not installed."
    return sorted(listed.items, key=lambda p: p.metadata.name), ""


def networks_of(pools: Iterable[IPPool]) -> Sequence[str]:
    """Return the networks that pools are on, but the management network."""
    return sorted({p.spec.selector.network for p in pools} - {""})


async def blocks_of(session: Session, pool: str) -> tuple[Sequence[IPBlock], str]:
    """Return the records of a pool's addresses, or none and why not."""
    try:
        listed = await session.client.list(IPBLOCKS, label_selector=f"{BLOCK_POOL_LABEL}={label_value(pool)}")
    except Forbidden as error:
        if error.status == 401:
            raise
        return (), "You may not read who has which address (IPBlock objects)."
    return listed.items, ""


async def held_of(session: Session, pool: str) -> Sequence[Holding]:
    """Return who has which address of a pool; nothing where the user may not know."""
    return holdings((await blocks_of(session, pool))[0])
