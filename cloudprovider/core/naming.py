"""Names of objects: Harvester's scheme for load balancers, ours for blocks. Names are for people, never identity."""

import re
from hashlib import sha256
from typing import Final
from zlib import crc32

from cloudprovider.core.plan import IPAddress

HOST_PROGRAM: Final = "cloudprovider-host"
AGENT_PROGRAM: Final = "cloudprovider-agent"
GUEST_PROGRAM: Final = "cloudprovider-guest"
"""What each program calls itself: its Lease (an agent's goes on with instance and node), its events, its workload."""

BRIDGE_SERVICE: Final = "cloudprovider-bridge"
"""How guests reach the bridge, in the host cluster."""
GUEST_SECRET: Final = "cloudprovider-bridge"  # noqa: S105 - a name
SERVER_SECRET: Final = "cloudprovider-bridge-tls"  # noqa: S105 - a name
CA_SECRET: Final = "cloudprovider-tenant-ca"  # noqa: S105 - a name
RENEWED_SECRET: Final = "cloudprovider-bridge-renewed"  # noqa: S105 - a name
"""In our own namespace: on the host the bridge's certificate and the CA; in a guest its own, as its operator has put it
there and as it has been renewed since."""

_LABEL_1035 = re.compile(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?")
_MAX_LABEL = 63
_MAX_NAME = 253  # RFC 1123 subdomain, the limit of most objects' names
_DIGEST = 8


def load_balancer_name(cluster: str, service_namespace: str, service_name: str, service_uid: str) -> str:
    """Return the name of the host's LoadBalancer for a guest's Service, at most 63 characters.

    It is the name that Harvester's cloud provider gives (``loadBalancerName`` in cloud-provider-harvester):
    ``<cluster>-<namespace>-<name>-`` cut to 55 characters, then eight hex digits of the CRC-32 (IEEE) of the uncut
    base followed by the UID. A cluster name that is no RFC 1035 label gets an "a" in front.
    """
    prefix = "" if _LABEL_1035.fullmatch(cluster) else "a"
    base = f"{prefix}{cluster}-{service_namespace}-{service_name}-"
    return f"{base[: _MAX_LABEL - _DIGEST]}{crc32((base + service_uid).encode()):08x}"


def block_name(pool: str, first: IPAddress) -> str:
    """Return the name of the IPBlock of ``pool`` that begins at ``first``: ``<pool>-<address>``.

    IPv6 addresses are written in full with dashes. No two blocks share a name: the address is all that follows the
    last dash (IPv4) or the last eight (IPv6), and a pool's name that is too long is cut and told apart by a digest.
    """
    address = str(first) if first.version == 4 else first.exploded.replace(":", "-")
    return f"{_shorten(pool, _MAX_NAME - 1 - len(address))}-{address}"


def agent_lease_name(instance: str, node: str) -> str:
    """Return the name of the Lease of the agent on ``node``."""
    return _shorten(f"{AGENT_PROGRAM}-{instance}-{node}", _MAX_NAME)


def label_value(text: str) -> str:
    """Return ``text`` as the value of a label: itself up to 63 characters, else cut and told apart by a digest."""
    return _shorten(text, _MAX_LABEL)


def _shorten(text: str, limit: int) -> str:
    if len(text) <= limit:
        return text
    digest = sha256(text.encode()).hexdigest()[:16]
    return f"{text[: limit - 1 - len(digest)].rstrip('-._')}-{digest}"
