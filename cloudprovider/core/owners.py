"""Which host a load balancer's addresses belong to.

Rendezvous hashing (Thaler and Ravishankar, "Using name-based mappings to increase hit rates", 1998) with weights
(Schindelhauer and Schomaker, "Weighted distributed hash tables", 2005): each host draws for each key, the highest
draw wins. So all who know the same hosts agree without a word, and of a host that goes only its own share moves.
"""

import math
from collections.abc import Iterable, Mapping
from hashlib import blake2b
from typing import Final

_SPAN: Final = float(1 << 64)


def draw(key: str, host: str, weight: float = 1.0) -> float:
    """What a host draws for a key: the higher, the more it is its. ``weight`` above 0: its share, to the others'."""
    digest = blake2b(f"{host}\0{key}".encode(), digest_size=8).digest()
    return -weight / math.log((int.from_bytes(digest, "big") + 1) / (_SPAN + 2))


def successor(key: str, hosts: Iterable[str]) -> str:
    """Who of these takes what somebody else has lost; "" where there is nobody."""
    return max(hosts, key=lambda host: (draw(key, host), host), default="")


def ranking(key: str, weights: Mapping[str, float]) -> list[str]:
    """All hosts of a weight above 0, the best first."""
    able = (host for host, weight in weights.items() if weight > 0)
    return sorted(able, key=lambda host: (-draw(key, host, weights[host]), host))
