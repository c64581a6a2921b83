"""Harvester's ``manuallyReleaseIP``: an operator takes an address back from a load balancer that is gone.

The annotation on a pool is "<address>: <namespace>/<load balancer>"; the controller frees the record and takes the
annotation away.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Final

from cloudprovider.core.api.pool import MANUALLY_RELEASE_ANNOTATION
from cloudprovider.core.errors import InvalidRequest, Violation
from cloudprovider.core.plan import IPAddress
from cloudprovider.core.rules.holdings import Holding
from cloudprovider.core.rules.verdict import Verdict
from cloudprovider.core.rulings import RuledReason

FIELD: Final = f"metadata.annotations[{MANUALLY_RELEASE_ANNOTATION}]"


@dataclass(frozen=True, slots=True)
class ReleaseOrder:
    """What the annotation asks for."""

    address: IPAddress
    namespace: str
    name: str

    @property
    def owner(self) -> str:
        """As blocks name it."""
        return f"{self.namespace}/{self.name}"


def parse_release(text: str) -> ReleaseOrder:
    """Read the annotation's value. Raises InvalidRequest."""
    address, _, owner = (part.strip() for part in text.rpartition(":"))
    namespace, slash, name = owner.partition("/")
    try:
        if not (namespace and slash and name) or "/" in name or "%" in address:
            raise ValueError
        return ReleaseOrder(ip_address(address), namespace, name)
    except ValueError:
        message = f'"{text}" is not of the form "192.168.1.10: namespace/load-balancer"'
        raise InvalidRequest(Violation(field=FIELD, reason="Malformed", message=message)) from None


def check_release(order: ReleaseOrder, held: Sequence[Holding], *, exists: bool) -> Verdict:
    """Judge whether the address may be taken back. ``held``: what is allocated from the pool; ``exists``: whether the
    load balancer does."""
    holding = next((h for h in held if h.address == order.address), None)
    if holding is None:
        return Verdict(warnings=(f"{FIELD}: nobody holds {order.address} in this pool: there is nothing to release",))
    if holding.is_hosts or holding.owner != order.owner:
        return _refused("NotTheHolder", f"{order.address} is not held by {order.owner}: it is {holding.text}")
    if exists:
        return _refused(
            "StillExists",
            f"the load balancer {order.owner} still exists: delete it, and {order.address} comes back by itself",
        )
    if holding.sharers:
        return _refused("Shared", f"it is still in use: {holding.text}; delete these too, and it comes back by itself")
    return Verdict()


def _refused(reason: RuledReason, message: str) -> Verdict:
    return Verdict((Violation(field=FIELD, reason=reason, message=message),))
