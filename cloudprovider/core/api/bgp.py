"""BGPPeer and BGPAdvertisement, ``cloudprovider.harvesterhci.io/v1beta1``: which routers hosts speak to, and what of
the load balancers' addresses they say.

Operators write the specs; each host's agent one entry of the status, by a field manager of its own. Names and meaning
are MetalLB's, as far as there is the same.
"""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from cloudprovider.core.api.meta import AddressText, ApiStruct, KubeObject

PASSWORDS_SECRET = "cloudprovider-bgp"  # noqa: S105 - a name
"""In the system namespace: the passwords of all sessions, one a key. One name, as a role can allow no pattern of names,
and what else lies there is not the agents' to read."""

MAX_ASN = 4294967295
_NODE = Annotated[str, Meta(min_length=1, max_length=253, description="The host.")]
_SECONDS = "^([0-9]{1,3}h)?([0-9]{1,4}m)?([0-9]{1,5}s)?$"


class LabelExpression(ApiStruct, frozen=True, kw_only=True):
    """One requirement of a label selector."""

    key: Annotated[str, Meta(min_length=1, max_length=317, description="The label.")]
    operator: Annotated[
        Literal["In", "NotIn", "Exists", "DoesNotExist"], Meta(description="How its value stands to values.")
    ]
    values: Annotated[
        list[Annotated[str, Meta(max_length=63)]], Meta(max_length=64, description="Of In and NotIn.")
    ] = []


class LabelSelector(ApiStruct, frozen=True, kw_only=True):
    """metav1.LabelSelector: all that is in it must hold; an empty one matches everything."""

    match_labels: Annotated[dict[str, str], Meta(max_length=32, description="Labels that must have these values.")] = {}
    match_expressions: Annotated[list[LabelExpression], Meta(max_length=32, description="Requirements of labels.")] = []


class Bfd(ApiStruct, frozen=True, kw_only=True):
    """How the router is watched, so that each side learns of the other's death at once (RFC 5880)."""

    interval: Annotated[
        int, Meta(ge=50, le=60000, description="Milliseconds between two packets, to send and to receive.")
    ] = 300
    multiplier: Annotated[int, Meta(ge=2, le=255, description="So many lost in a row: it is down.")] = 3


class BGPPeerSpec(ApiStruct, frozen=True, kw_only=True):
    """A router, and how hosts speak to it."""

    network: Annotated[
        str,
        Meta(max_length=127, description='The network that it is spoken to on, "namespace/name"; empty: management.'),
    ] = ""
    my_asn: Annotated[
        int, Meta(ge=1, le=MAX_ASN, description="The hosts' AS number, the same for all peers of a network.")
    ] = msgspec.field(name="myASN")
    peer_asn: Annotated[int, Meta(ge=1, le=MAX_ASN, description="The router's AS number; the hosts' own: iBGP.")] = (
        msgspec.field(name="peerASN")
    )
    peer_address: Annotated[AddressText, Meta(min_length=1, description="The router's address, IPv4 or IPv6.")]
    peer_port: Annotated[int, Meta(ge=1, le=65535, description="The router's TCP port.")] = 179
    hold_time: Annotated[
        str,
        Meta(
            min_length=2,
            pattern=_SECONDS,
            description='Silent for so long, the session ends, on either side: "9s", "1m30s". "0s": never.',
        ),
    ] = "90s"
    keepalive_time: Annotated[
        str, Meta(pattern=_SECONDS, description="Between two signs of life; empty: a third of holdTime.")
    ] = ""
    password_key: Annotated[
        str,
        Meta(
            max_length=253,
            pattern=r"^[-._a-zA-Z0-9]*$",
            description=f"Which key of the Secret {PASSWORDS_SECRET} in the system namespace is the session's password"
            " (TCP MD5, RFC 2385); empty: none.",
        ),
    ] = ""
    ebgp_multi_hop: Annotated[
        bool, Meta(description="The router does not stand on the network: it is reached by the network's gateway.")
    ] = False
    bfd: Bfd | None = None
    node_selectors: Annotated[
        list[LabelSelector],
        Meta(max_length=16, description="The hosts that speak to it: whose Node matches any. Empty: all."),
    ] = []


class BGPSession(ApiStruct, frozen=True, kw_only=True):
    """One host's session with the router."""

    node: _NODE
    state: Annotated[
        Literal["Established", "Connecting", "Flapping", "Refused"],
        Meta(
            description="Flapping: it comes up, and ends again and again. Refused: the host does not try, error says"
            " why."
        ),
    ]
    since: Annotated[str, Meta(description="RFC 3339; since when it is so.")] = ""
    advertised: Annotated[int, Meta(ge=0, description="Addresses that the host says to the router now.")] = 0
    error: Annotated[
        str, Meta(max_length=1024, description="What is wrong, and what to do; or why the session last ended.")
    ] = ""


class BGPPeerStatus(ApiStruct, frozen=True, kw_only=True):
    """How hosts stand with the router, each by its own word."""

    sessions: Annotated[list[BGPSession], Meta(max_length=5000, description="By host.")] = []


class BGPPeer(KubeObject, frozen=True, kw_only=True):
    """A router that hosts speak BGP to."""

    spec: BGPPeerSpec
    status: BGPPeerStatus = msgspec.field(default_factory=BGPPeerStatus)


class BGPAdvertisementSpec(ApiStruct, frozen=True, kw_only=True):
    """Which addresses are said to whom, and how."""

    ip_pools: Annotated[
        list[Annotated[str, Meta(min_length=1, max_length=253)]],
        Meta(max_length=256, description="Pools by name. With ipPoolSelectors empty too: all pools."),
    ] = []
    ip_pool_selectors: Annotated[
        list[LabelSelector], Meta(max_length=16, description="Pools by their labels, beside those by name.")
    ] = []
    peers: Annotated[
        list[Annotated[str, Meta(min_length=1, max_length=253)]],
        Meta(max_length=64, description="BGPPeers by name. Empty: all."),
    ] = []
    node_selectors: Annotated[
        list[LabelSelector],
        Meta(max_length=16, description="The hosts that say so: whose Node matches any. Empty: all."),
    ] = []
    communities: Annotated[
        list[Annotated[str, Meta(min_length=1, max_length=40)]],
        Meta(
            max_length=32,
            description='"64512:100" (RFC 1997), "large:64512:1:2" (RFC 8092), or one of "no-export",'
            ' "no-advertise", "blackhole", "graceful-shutdown", "accept-own", "no-peer".',
        ),
    ] = []
    local_preference: Annotated[
        int, Meta(ge=0, le=4294967295, description="For routers of the hosts' own AS; others do not hear it.")
    ] = msgspec.field(name="localPref", default=100)


class BGPAnnouncer(ApiStruct, frozen=True, kw_only=True):
    """What one host makes of the advertisement."""

    node: _NODE
    addresses: Annotated[int, Meta(ge=0, description="Addresses that it says to at least one router.")] = 0
    problem: Annotated[str, Meta(max_length=1024, description="What is wrong with it, and what to do.")] = ""


class BGPAdvertisementStatus(ApiStruct, frozen=True, kw_only=True):
    """What becomes of it, by each host's own word."""

    hosts: Annotated[list[BGPAnnouncer], Meta(max_length=5000, description="By host.")] = []


class BGPAdvertisement(KubeObject, frozen=True, kw_only=True):
    """What hosts say of load balancers' addresses by BGP. Without any, nothing is said."""

    spec: BGPAdvertisementSpec = msgspec.field(default_factory=BGPAdvertisementSpec)
    status: BGPAdvertisementStatus = msgspec.field(default_factory=BGPAdvertisementStatus)


__all__ = [
    "PASSWORDS_SECRET",
    "BGPAdvertisement",
    "BGPAdvertisementSpec",
    "BGPAdvertisementStatus",
    "BGPAnnouncer",
    "BGPPeer",
    "BGPPeerSpec",
    "BGPPeerStatus",
    "BGPSession",
    "Bfd",
    "LabelExpression",
    "LabelSelector",
]
