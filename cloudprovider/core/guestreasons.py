"""Reasons that the guest program has for a Service: its own, and those of the bridge. See :mod:`.reasons`."""

from collections.abc import Mapping
from typing import Final, Literal

from cloudprovider.core.rulings import Meaning

BridgeReason = Literal[
    "HostNotReached",
    "BridgeFailed",
    "CertificateInvalid",
    "CertificateExpired",
    "CertificateRevoked",
    "TlsVersion",
    "UnknownTenant",
    "ClusterMismatch",
    "NotConnected",
    "StaleLeader",
    "RenewalNotOffered",
    "IdentityMismatch",
    "UnsupportedVersion",
    "TenantTerminating",
    "QuotaExceeded",
    "RateLimited",
    "Unavailable",
    "DeadlineExceeded",
    "Internal",
]
"""Why a Service has not come to the host. In calls of the bridge the same in capitals: CERTIFICATE_EXPIRED."""

_LATER: Final = "nothing: it is tried again; look at the host program if this stays"

BRIDGE: Final[Mapping[BridgeReason, Meaning]] = {
    "HostNotReached": Meaning(
        "the host's bridge has not answered yet",
        "is the bridge's address right, and reachable from here? The guest program's log says more",
    ),
    "BridgeFailed": Meaning("the bridge refused without saying why", "look at both programs' logs"),
    "CertificateInvalid": Meaning(
        "the bridge does not accept the guest's certificate", "have the certificate issued anew"
    ),
    "CertificateExpired": Meaning("the guest's certificate is over", "have the certificate issued anew"),
    "CertificateRevoked": Meaning(
        "the GuestCluster revokes the guest's certificate", "have the certificate issued anew"
    ),
    "TlsVersion": Meaning("the connection is not TLS 1.3", "let no proxy end TLS before the bridge"),
    "UnknownTenant": Meaning(
        "the host has no GuestCluster of the certificate's name", "have the host's operator apply the GuestCluster"
    ),
    "ClusterMismatch": Meaning(
        "another cluster has used this certificate before",
        "if this cluster was rebuilt, have the host's operator set the annotation"
        " cloudprovider.harvesterhci.io/rebind on its GuestCluster",
    ),
    "NotConnected": Meaning("the session is not open yet", _LATER),
    "StaleLeader": Meaning("another copy of the guest program leads by now", "nothing: the other one goes on"),
    "RenewalNotOffered": Meaning(
        "the host has no key to sign the tenant's next certificate with",
        "have the host's operator issue one (cloudprovider tenant rotate)",
    ),
    "IdentityMismatch": Meaning(
        "an object of the load balancer's name on the host is another Service's",
        "have the host's operator move the object out of the way",
    ),
    "UnsupportedVersion": Meaning("the two programs do not understand each other", "bring both to one version"),
    "TenantTerminating": Meaning(
        "the GuestCluster is being deleted: the tenant ends", "if that was a mistake, ask the host's operator"
    ),
    "QuotaExceeded": Meaning(
        "as many load balancers as the GuestCluster's quota allows",
        "delete what is not needed any more, or have the host's operator allow more",
    ),
    "RateLimited": Meaning("more calls in a second than the quota allows", "nothing: it goes on, more slowly"),
    "Unavailable": Meaning("the host can't serve right now", _LATER),
    "DeadlineExceeded": Meaning("the host did not answer in time", _LATER),
    "Internal": Meaning("the host has a fault, which its log tells", "have the host's operator look at the log"),
}

ServiceReason = Literal[
    "Pending",
    "NotReady",
    "ForeignOwner",
    "InvalidRequest",
    "AddressNotUnderstood",
    "LoadBalancerMixedProtocolNotSupported",
]
"""What the guest program alone says on a Service."""

SERVICE: Final[Mapping[ServiceReason, Meaning]] = {
    "Pending": Meaning("the host has not given an address yet; the message has its words", "look at it on the host"),
    "NotReady": Meaning("the host says no, and not why", "look at the LoadBalancer on the host"),
    "ForeignOwner": Meaning(
        "another controller has written an address here that we have not given",
        "let one controller alone handle the Service",
    ),
    "InvalidRequest": Meaning("several things are wrong with the Service", "correct the fields that the message names"),
    "AddressNotUnderstood": Meaning("the host gave what is no address", "bring both programs to one version"),
    "LoadBalancerMixedProtocolNotSupported": Meaning(
        "some of its ports can't be served, the others are (Kubernetes' own word)", "use TCP or UDP: SCTP is not served"
    ),
}
