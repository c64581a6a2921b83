"""A block's record of one address: who has it, alone or with others, and what becomes of it when one of them leaves."""

from cloudprovider.core.api.pool import Allocation


def has(record: Allocation, owner: str, uid: str) -> bool:
    """Whether ``owner`` with this UID has it."""
    return (record.owner, record.uid) == (owner, uid) or record.sharers.get(owner) == uid


def without(record: Allocation, owner: str) -> Allocation | None:
    """Return the record once ``owner`` has left; the first of the others takes over. None: nobody is left."""
    if record.owner != owner:
        return replaced(record, sharers={k: v for k, v in record.sharers.items() if k != owner})
    if not record.sharers:
        return None
    heir = min(record.sharers)
    rest = {k: v for k, v in record.sharers.items() if k != heir}
    return replaced(record, owner=heir, uid=record.sharers[heir], sharers=rest)


def replaced(
    record: Allocation,
    *,
    owner: str | None = None,
    uid: str | None = None,
    since: str | None = None,
    sharers: dict[str, str] | None = None,
) -> Allocation:
    """Return the record with some of it changed."""
    return Allocation(
        owner=record.owner if owner is None else owner,
        uid=record.uid if uid is None else uid,
        since=record.since if since is None else since,
        tenant=record.tenant,
        sharers=record.sharers if sharers is None else sharers,
    )
