"""What the API server itself checks before it stores one of our objects: CEL rules, by the type they stand on.

The schema's own bounds (minimum, enum, length) stand on the fields; here is what needs more than one field, an
address library, or the object's former self. Rules see the object after defaulting. CEL can't compare or count
addresses: broadcast addresses, and ranges and pools that overlap, are the webhook's to refuse (``core.rules``).

Costs (https://kubernetes.io/docs/reference/using-api/cel/#resource-constraints): the API server refuses a definition
whose rules could cost too much, so lists that a rule walks twice are bounded accordingly. Such a walk takes the API
server 0.4 s for 100 listeners; a cluster's are unique already, as its own API server takes no other Service.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

from cloudprovider.core.api.bgp import BGPPeerSpec
from cloudprovider.core.api.guestcluster import GuestClusterSpec
from cloudprovider.core.api.loadbalancer import HealthCheck, LoadBalancerSpec, ServiceReference
from cloudprovider.core.api.meta import ApiStruct
from cloudprovider.core.api.pool import IPBlockSpec, Range, Reservation


@dataclass(frozen=True, kw_only=True)
class Rule:
    """One entry of ``x-kubernetes-validations``.

    ``field`` is the path the error names, relative to the type. ``expression``, where set, computes the message.
    (FieldValueDuplicate is no choice: the API server then leaves the message out.)
    """

    rule: str
    message: str
    field: str = ""
    expression: str = ""
    reason: Literal["FieldValueInvalid", "FieldValueForbidden", "FieldValueRequired"] = "FieldValueInvalid"


def _immutable(message: str, *fields: str) -> Rule:
    """``fields`` keep their values for the object's life."""
    rule = " && ".join(f"self.{field} == oldSelf.{field}" for field in fields)
    return Rule(rule=rule, message=message, reason="FieldValueForbidden")


def _only_by(field: str, empty: str, *protocols: str) -> Rule:
    """A field of a health check that only some kinds of check have."""
    kinds = " and ".join(protocols)
    return Rule(
        rule=f"!has(self.{field}) || self.{field} == {empty} || self.protocol in {list(protocols)}",
        message=f"{field} is for {kinds} only",
        expression=f"'{field} is for {kinds} only, and the check is by ' + self.protocol",
        field=f".{field}",
    )


def _in_subnet(field: str) -> Rule:
    """An optional address of a range: inside the subnet, and not the subnet's own address."""
    return Rule(
        rule=f"!has(self.{field}) || self.{field} == '' || !isCIDR(self.subnet)"
        f" || (isIP(self.{field}) && cidr(self.subnet).containsIP(self.{field})"
        f" && (cidr(self.subnet).prefixLength() >= 31"
        f" || string(cidr(self.subnet).masked().ip()) != self.{field}))",
        message=f"{field} must be a host address of subnet",
        expression=f"'\"' + self.{field} + '\" is not a host address of subnet \"' + self.subnet + '\"'",
        field=f".{field}",
    )


def _none_of(field: str, check: str, kind: str) -> str:
    """The message that names the first item of a list that is none of its kind. (By format: joining texts of unknown
    length could cost more than the API server allows.)"""
    return f"'\"%s\" is no {kind}'.format([self.{field}.filter(x, !{check}(x))[0]])"


# The rules run at every write, of a status too, and each step into an object costs the API server: it is filled in,
# so has() need not be asked.
_CLUSTER: Final = "self.workloadType == 'cluster'"

_LOAD_BALANCER: Final = (
    Rule(
        rule=f"({_CLUSTER}) == (oldSelf.workloadType == 'cluster')",
        message="workloadType can't be changed; delete the load balancer and create it anew",
        field=".workloadType",
        reason="FieldValueForbidden",
    ),
    Rule(
        rule=f"{_CLUSTER} || (has(self.listeners) && self.listeners.size() > 0)",
        message="a load balancer for virtual machines needs at least one listener",
        field=".listeners",
        reason="FieldValueRequired",
    ),
    Rule(
        rule=f"{_CLUSTER} || !has(self.listeners) || self.listeners.all(l, has(l.backendPort))",
        message="a listener of a load balancer for virtual machines needs a backendPort, the machine's port",
        expression="'the listener of port %d needs a backendPort, the machine\\'s port'"
        ".format([self.listeners.filter(l, !has(l.backendPort))[0].port])",
        field=".listeners",
        reason="FieldValueRequired",
    ),
    Rule(
        rule=f"{_CLUSTER} || !has(self.listeners) || self.listeners.all(l, !has(l.name) || l.name == ''"
        " || self.listeners.exists_one(o, has(o.name) && o.name == l.name))",
        message="two listeners have the same name",
        expression="'two listeners have the same name, \"%s\"'.format([self.listeners.filter(l, has(l.name)"
        " && l.name != '' && !self.listeners.exists_one(o, has(o.name) && o.name == l.name))[0].name])",
        field=".listeners",
    ),
    Rule(
        rule=f"{_CLUSTER} || !has(self.listeners) || self.listeners.all(l,"
        " self.listeners.exists_one(o, o.port == l.port && o.protocol == l.protocol))",
        message="two listeners have the same port and protocol",
        expression="'two listeners have the same port and protocol, %d'.format([self.listeners.filter(l,"
        " !self.listeners.exists_one(o, o.port == l.port && o.protocol == l.protocol))[0].port])",
        field=".listeners",
    ),
    Rule(
        rule=f"{_CLUSTER} || !has(self.healthCheck) || !has(self.healthCheck.port) || self.healthCheck.port == 0"
        " || !has(self.listeners) || !self.listeners.exists(l, l.protocol == 'TCP')"
        " || self.listeners.exists(l, l.protocol == 'TCP' && has(l.backendPort)"
        " && l.backendPort == self.healthCheck.port)",
        message="healthCheck.port must be the backendPort of a TCP listener, where there is one",
        expression="'%d must be the backendPort of a TCP listener'.format([self.healthCheck.port])",
        field=".healthCheck.port",
    ),
    Rule(
        rule="!has(self.addresses) || self.addresses.all(a, isIP(a))",
        message="addresses must be IP addresses",
        expression=_none_of("addresses", "isIP", "IP address"),
        field=".addresses",
    ),
    Rule(
        rule="!has(self.addresses) || self.addresses.size() < 2 || !self.addresses.all(a, isIP(a))"
        " || ip(self.addresses[0]).family() != ip(self.addresses[1]).family()",
        message="two addresses must be one of each family",
        expression="'two addresses must be one of each family: ' + self.addresses.join(' and ') + ' are not'",
        field=".addresses",
    ),
    Rule(
        rule="!has(self.ipFamilies) || self.ipFamilies.size() < 2 || self.ipFamilies[0] != self.ipFamilies[1]",
        message="ipFamilies must not name a family twice",
        expression="'ipFamilies must not name a family twice: ' + self.ipFamilies[0]",
        field=".ipFamilies",
    ),
    Rule(
        rule="!has(self.sourceRanges) || self.sourceRanges.all(r, isCIDR(r))",
        message="sourceRanges must be CIDRs",
        expression=_none_of("sourceRanges", "isCIDR", "CIDR"),
        field=".sourceRanges",
    ),
    Rule(
        rule=f"!has(self.service) || {_CLUSTER}",
        message='service is only for workloadType "cluster"; the bridge writes it',
        field=".service",
        reason="FieldValueForbidden",
    ),
    Rule(
        rule="!has(oldSelf.service) || has(self.service)",
        message="the Service that a load balancer stands for can't be taken away",
        field=".service",
        reason="FieldValueForbidden",
    ),
)

_HEALTH_CHECK: Final = (
    _only_by("path", "''", "HTTP", "HTTPS"),
    _only_by("expectedCodes", "[]", "HTTP", "HTTPS"),
    _only_by("host", "''", "HTTP", "HTTPS", "GRPC", "GRPCS"),
    _only_by("verifyCertificate", "false", "HTTPS", "GRPCS"),
    _only_by("certificateAuthority", "''", "HTTPS", "GRPCS"),
    _only_by("grpcService", "''", "GRPC", "GRPCS"),
    Rule(
        rule="!has(self.expectedCodes)"
        " || self.expectedCodes.all(c, c.size() != 7 || c.substring(0, 3) <= c.substring(4))",
        message="expectedCodes must name the smaller code first",
        expression="'%s runs backwards: name the smaller code first'.format([self.expectedCodes.filter(c,"
        " c.size() == 7 && c.substring(0, 3) > c.substring(4))[0]])",
        field=".expectedCodes",
    ),
)

_RANGE: Final = (
    Rule(
        rule="isCIDR(self.subnet)",
        message='subnet must be a CIDR, for example "192.168.100.0/24"',
        expression="'subnet \"' + self.subnet + '\" is not a CIDR, for example \"192.168.100.0/24\"'",
        field=".subnet",
    ),
    _in_subnet("rangeStart"),
    _in_subnet("rangeEnd"),
    _in_subnet("gateway"),
)

_RESERVATION: Final = (
    Rule(
        rule="isIP(self.address)",
        message="address must be an IP address",
        expression="'\"' + self.address + '\" is no IP address'",
        field=".address",
    ),
    Rule(
        rule="(has(self.loadBalancer) && self.loadBalancer != '')"
        " != (has(self.guestCluster) && self.guestCluster != '' && has(self.service) && self.service != '')",
        message="a reservation is for a loadBalancer, or for a service of a guestCluster; name one of the two",
    ),
)

_SERVICE: Final = (
    _immutable(
        "the Service that a load balancer stands for can't be changed",
        *("uid", "name", "__namespace__"),  # "namespace" is reserved in CEL, and escaped so
    ),
)

_GUEST_CLUSTER: Final = (
    Rule(
        rule="!has(self.nodeCidrs) || self.nodeCidrs.all(c, isCIDR(c))",
        message="nodeCidrs must be CIDRs",
        expression=_none_of("nodeCidrs", "isCIDR", "CIDR"),
        field=".nodeCidrs",
    ),
)

_BGP_PEER: Final = (
    Rule(
        rule="isIP(self.peerAddress)",
        message="peerAddress must be an IP address",
        expression="'\"' + self.peerAddress + '\" is no IP address'",
        field=".peerAddress",
    ),
    Rule(
        rule="!has(self.holdTime) || duration(self.holdTime) == duration('0s')"
        " || (duration(self.holdTime) >= duration('3s') && duration(self.holdTime) < duration('65536s'))",
        message='holdTime must be "0s", or from "3s" to "65535s" (RFC 4271 section 4.2)',
        field=".holdTime",
    ),
    Rule(
        rule="!has(self.bfd) || !has(self.ebgpMultiHop) || !self.ebgpMultiHop",
        message="bfd is for a router on the network itself: leave bfd out, or ebgpMultiHop",
        field=".bfd",
    ),
)

RULES: Final[Mapping[type[ApiStruct], tuple[Rule, ...]]] = {
    LoadBalancerSpec: _LOAD_BALANCER,
    HealthCheck: _HEALTH_CHECK,
    ServiceReference: _SERVICE,
    Range: _RANGE,
    Reservation: _RESERVATION,
    IPBlockSpec: (
        _immutable("a block belongs to one pool for ever", "pool"),
        _immutable("a block's first address can't be changed", "first"),
    ),
    GuestClusterSpec: _GUEST_CLUSTER,
    BGPPeerSpec: _BGP_PEER,
}
