"""What is to be said of a tenant in one word, and in one line."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Final

from cloudprovider.core.api.guestcluster import GuestCluster
from cloudprovider.core.installation import ENDING, SILENCE

HEADERS: Final = ("NAMESPACE", "NAME", "STATE", "CERTIFICATE ENDS", "SEEN", "VERSION")


def state(cluster: GuestCluster, now: datetime) -> str:
    """Return what the tenant is: Ending, Revoked, Expired, New (it has never called), Silent, Expiring or Ready."""
    spec, status = cluster.spec, cluster.status
    if cluster.metadata.deletion_timestamp:
        return "Ending"
    shown = status.certificate
    begins, ends = (_time(shown.not_before), _time(shown.not_after)) if shown is not None else (None, None)
    if shown is not None and shown.fingerprint in spec.revoked_fingerprints:
        return "Revoked"
    revoked = _time(spec.revoked_before)
    if revoked is not None and (begins is None or begins < revoked):
        return "Revoked" if begins is not None else "New"
    if ends is not None and now >= ends:
        return "Expired"
    seen = _time(status.last_seen_time)
    if seen is None:
        return "New"
    if now - seen > SILENCE:
        return "Silent"
    return "Expiring" if ends is not None and ends - now < ENDING else "Ready"


def row(cluster: GuestCluster, now: datetime, seen: str) -> Sequence[str]:
    """Return the cells under :data:`HEADERS`; ``seen``: how long ago it last called."""
    shown = cluster.status.certificate
    ends = _time(shown.not_after) if shown is not None else None
    return (
        *cluster.key,
        state(cluster, now),
        f"{ends:%Y-%m-%d}" if ends is not None else "-",
        seen,
        cluster.status.guest_version or "-",
    )


def revocation(cluster: GuestCluster, now: datetime) -> datetime:
    """Return the time, in whole seconds, that no certificate issued until now begins at or after: neither the one that
    was shown last, though it was made where the clock is ahead."""
    shown = cluster.status.certificate
    begins = _time(shown.not_before) if shown is not None else None
    after = [now, *([begins] if begins is not None else [])]
    return max(after).astimezone(UTC).replace(microsecond=0) + timedelta(seconds=1)


def has_older_certificate(cluster: GuestCluster, moment: datetime) -> bool:
    """Whether the certificate last seen begins before ``moment``."""
    shown = cluster.status.certificate
    begins = _time(shown.not_before) if shown is not None else None
    return begins is not None and begins < moment


def _time(text: str) -> datetime | None:
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        return None
