"""Every reason that a condition, an event or a refusal of ours may carry: the word, what it means, what to do.

A reason is a CamelCase word for programs (Kubernetes API conventions, "Typical status properties"). Each group is a
Literal, so that mypy refuses a word that is not here, and a table, of which docs/reference is generated and ``kubectl
lb explain`` takes what to do. A word that stands in two groups may mean two things.
"""

from collections.abc import Mapping
from typing import Final, Literal, NewType

from cloudprovider.core.guestreasons import BridgeReason, ServiceReason
from cloudprovider.core.rulings import Meaning, RequestReason

Heard = NewType("Heard", str)
"""A reason that was read: from an object, an API server or the other side of the bridge, of whatever version."""

NoPoolReason = Literal["NoPoolMatches", "PoolNotFound", "PoolNotPermitted", "AddressNotInPool"]
"""Why no pool serves a request."""

POOL: Final[Mapping[NoPoolReason, Meaning]] = {
    "NoPoolMatches": Meaning(
        "no pool is for this network and open to who asks; the message says pool by pool why not",
        "have the host's operator open a pool to it, or ask for the network of one that is open",
    ),
    "PoolNotFound": Meaning("there is no pool of the name asked for", "name another pool, or none"),
    "PoolNotPermitted": Meaning(
        "the pool asked for is not open to who asks",
        "name another pool, or have the host's operator open this one",
    ),
    "AddressNotInPool": Meaning(
        "no pool that matches hands out the address asked for", "ask for an address of the pool, or for none"
    ),
}

Refusal = Literal[
    "PoolNotFound",
    "PoolExhausted",
    "QuotaExceeded",
    "AddressInUse",
    "AddressReserved",
    "AddressConflict",
    "AddressNotInPool",
    "TooManySharers",
    "WaitingForGuests",
]
"""Why a pool's blocks give no address."""

SharingReason = Literal["PrimaryNotFound", "PrimaryIsShared", "PrimaryUsesDHCP", "WaitingForPrimary", "PortConflict"]
"""Why an address is not shared."""

AddressReason = Literal[Refusal, SharingReason, "UnsupportedIPAM", "InvalidSpec"]

ADDRESS: Final[Mapping[AddressReason, Meaning]] = {
    "PoolNotFound": Meaning(POOL["PoolNotFound"].text, POOL["PoolNotFound"].todo),
    "PoolExhausted": Meaning(
        "every address of the pool is taken, reserved or set aside",
        "delete what is not needed, or have the host's operator add a range; it goes on by itself",
    ),
    "QuotaExceeded": Meaning(
        "as many addresses are held as the pool (addressesPerTenant) or the GuestCluster (quota) allows",
        "delete what is not needed any more, share an address, or have the host's operator allow more",
    ),
    "AddressInUse": Meaning("the address asked for is somebody else's", "ask for another address, or for none"),
    "AddressReserved": Meaning("the pool keeps the address for another owner", "ask for another address, or for none"),
    "AddressConflict": Meaning(
        "the address asked for is used on the network by a device that is none of ours",
        "find the device with that MAC address on the network, and take the address from it",
    ),
    "AddressNotInPool": POOL["AddressNotInPool"],
    "TooManySharers": Meaning("32 load balancers share the address already", "let it have an address of its own"),
    "WaitingForGuests": Meaning(
        "the host was restored from a backup, and lets every guest cluster first say which addresses it uses",
        "nothing: every guest first says which addresses it uses, which takes 30 s at most",
    ),
    "PrimaryNotFound": Meaning(
        "the Service whose address is to be shared has no load balancer",
        "create the Service whose address is to be shared, or name another one",
    ),
    "PrimaryIsShared": Meaning("the Service named shares another one's address itself", "name that other one"),
    "PrimaryUsesDHCP": Meaning("a leased address can't be shared", "let the primary Service have one of a pool"),
    "WaitingForPrimary": Meaning("the Service whose address is to be shared has none yet", "mend that Service"),
    "PortConflict": Meaning(
        "another Service on the shared address has that protocol and port",
        "use another port: another Service has this one on the shared address",
    ),
    "UnsupportedIPAM": Meaning("spec.ipam is neither pool nor dhcp", "set it to one of them"),
    "InvalidSpec": Meaning("the object's spec contradicts itself", "correct it in the LoadBalancer"),
}

LeaseReason = Literal[
    "WaitingForLease",
    "DHCPNoAnswer",
    "DHCPNoOffer",
    "DHCPRefused",
    "DHCPAddressConflict",
    "DHCPLeaseExpired",
    "DHCPInvalidOffer",
    "DHCPProbeFailed",
    "DHCPSendFailed",
    "NetworkNotConfigured",
    "InvalidHostname",
    "IdentityInUse",
    "InvalidSpec",
]

LEASE: Final[Mapping[LeaseReason, Meaning]] = {
    "WaitingForLease": Meaning("a lease is being asked for", "look at the network's DHCP server if this stays"),
    "DHCPNoAnswer": Meaning(
        "no DHCP server answers on the network", "look at the network's DHCP server; it goes on by itself"
    ),
    "DHCPNoOffer": Meaning(
        "a DHCP server answers others there, but offers nothing", "look at the network's DHCP server: has it room?"
    ),
    "DHCPRefused": Meaning(
        "the DHCP server took the address back (DHCPNAK); another one is asked for",
        "look whether the server's range has changed",
    ),
    "DHCPAddressConflict": Meaning(
        "a device has the address that the server offered; it was declined, and another one is asked for",
        "give that device another address, or take this one out of the server's range",
    ),
    "DHCPLeaseExpired": Meaning(
        "the server did not renew the lease in time: the address is off the network, another one is asked for",
        "look at the network's DHCP server",
    ),
    "DHCPInvalidOffer": Meaning("what the server offers can't be used", "correct the server's configuration"),
    "DHCPProbeFailed": Meaning(
        "whether somebody has the offered address could not be found out", "look at the agent's log"
    ),
    "DHCPSendFailed": Meaning("the network's device takes no frames", "bring its device up on this host"),
    "NetworkNotConfigured": Meaning(
        "no host stands on the network of the load balancer", "add the network to the agents' files"
    ),
    "InvalidHostname": Meaning("the host name for the DHCP server is none", "correct the annotation's value"),
    "IdentityInUse": Meaning("two load balancers would be one DHCP client", "delete one of them and make it anew"),
    "InvalidSpec": ADDRESS["InvalidSpec"],
}

ProgrammedReason = Literal[
    "AddressConflict",
    "HeldByAnotherHost",
    "NetworkNotConfigured",
    "ModeNotPossible",
    "NoNodePort",
    "ListenerInUse",
    "KernelRefused",
    "InvalidSpec",
]

PROGRAMMED: Final[Mapping[ProgrammedReason, Meaning]] = {
    "AddressConflict": ADDRESS["AddressConflict"],
    "HeldByAnotherHost": Meaning(
        "the host is to take the address from another one, whose kernel still answers for it", "nothing"
    ),
    "NetworkNotConfigured": LEASE["NetworkNotConfigured"],
    "ModeNotPossible": Meaning(
        "the mode asked for lacks something, which the message names",
        "ask for another mode, or give what this one lacks",
    ),
    "NoNodePort": Meaning(
        "mode nat needs node ports, and the Service has none", "let the Service have node ports, or use mode dsr"
    ),
    "ListenerInUse": Meaning(
        "another load balancer has the address, protocol and port", "use another port, or another address"
    ),
    "KernelRefused": Meaning(
        "the kernel refused the rules or the address; it is tried again", "look at the message and the agent's log"
    ),
    "InvalidSpec": ADDRESS["InvalidSpec"],
}

TakenReason = Literal["AddressInUse", "GatewayAddress", "HostAddress", "LoadBalancerAddress", "ReservedRange"]
"""Why nothing is sent to an address that a machine or a node says it has."""

PlaceReason = Literal[TakenReason, "DuplicateAddress", "OutsideNodeCIDRs"]
"""The same of a node."""

PLACE: Final[Mapping[PlaceReason, Meaning]] = {
    "AddressInUse": Meaning(
        "another machine, or a guest cluster's node, had the address first", "give the machine an address of its own"
    ),
    "DuplicateAddress": Meaning("two nodes of the cluster report the address", "give one of them another address"),
    "GatewayAddress": Meaning("the address is a pool's gateway", "give the machine another address"),
    "HostAddress": Meaning("the address is the host's own", "give the machine another address"),
    "LoadBalancerAddress": Meaning("the address is a load balancer's", "give the machine another address"),
    "OutsideNodeCIDRs": Meaning(
        "the address lies outside of the GuestCluster's nodeCidrs", "have the host's operator add its range there"
    ),
    "ReservedRange": Meaning(
        "the address lies in the host's own pod or service ranges, or is none that can be sent to",
        "give the machine another address",
    ),
}

MachineReason = Literal["AgentNotConnected", "NoAddress", "NotOnNetwork", "BehindMasquerade", "NoMACAddress"]
"""Why nothing is sent to a virtual machine."""

MACHINE: Final[Mapping[MachineReason, Meaning]] = {
    "AgentNotConnected": Meaning(
        "qemu-guest-agent does not answer, and nothing else says the machine's address",
        "install and start qemu-guest-agent in the machine",
    ),
    "NoAddress": Meaning("its interface on the network has no address", "configure the interface in the machine"),
    "NotOnNetwork": Meaning(
        "it has no interface on the load balancer's network",
        "attach the machine to the network, or let the load balancer have an address where the machine is",
    ),
    "BehindMasquerade": Meaning("its interface is bound by masquerade", "bind the interface by bridge"),
    "NoMACAddress": Meaning(
        "its definition names no MAC yet",
        "wait for the start to end, or set macAddress in the interface's definition",
    ),
}

OwnedReason = Literal["NoHost"]

OWNED: Final[Mapping[OwnedReason, Meaning]] = {
    "NoHost": Meaning(
        "no host stands on the load balancer's networks, runs its agent and takes load balancers",
        "start the agent of one of the hosts, uncordon one, or add the network to the agents' files",
    ),
}

NoMachinesReason = Literal["NoBackends", "KubeVirtNotInstalled", "MachinesUnknown"]
BackendReason = Literal[
    "NoNodes",
    "WaitingForNodes",
    "AddressClaimedByNode",
    "NoHealthyBackends",
    NoMachinesReason,
    "AddressNotOnNetwork",
]
"""Why clients are not served, though the address is up."""

BACKEND: Final[Mapping[BackendReason, Meaning]] = {
    "NoNodes": Meaning(
        "no node of the guest cluster takes traffic: connections are refused",
        "look at the nodes: ready, without exclude labels, inside the tenant's nodeCidrs?",
    ),
    "WaitingForNodes": Meaning(
        "every node sends back what comes for the address: its kube-proxy does not know it (yet)",
        "look at kube-proxy on these nodes",
    ),
    "AddressClaimedByNode": Meaning(
        "a node answers for the address itself instead of leaving that to the host",
        "set strictARP: true where kube-proxy runs in mode ipvs",
    ),
    "NoHealthyBackends": Meaning(
        "every backend fails its health check: connections are refused",
        "look at what these machines answer there, and at spec.healthCheck",
    ),
    "NoBackends": Meaning(
        "no running virtual machine has the labels", "correct backendServerSelector, or label or start the machines"
    ),
    "AddressNotOnNetwork": Meaning(
        "mode nat: no machine's address lies in the network of the host's own address there",
        "give the machines addresses there, or correct the agents' files",
    ),
    "KubeVirtNotInstalled": Meaning(
        "the host cluster knows no virtual machines", "install KubeVirt; it goes on by itself"
    ),
    "MachinesUnknown": Meaning("the virtual machines have not been read yet", "look at the host program if this stays"),
}

FineReason = Literal[
    "Allocated",
    "Moving",
    "AddressKept",
    "Leased",
    "Programmed",
    "Ready",
    "BackendsFound",
    "Masquerade",
    "AddressAssigned",
]
"""Reasons of conditions that hold."""

FINE: Final[Mapping[FineReason, Meaning]] = {
    "Allocated": Meaning("it has its addresses"),
    "Moving": Meaning("another address is being brought up beside the one it has"),
    "AddressKept": Meaning("what it asks for now can't be had: it keeps the address that it has"),
    "Leased": Meaning("a DHCP server has given the address"),
    "Programmed": Meaning("its rules are in a host's kernel; the message says in which mode and why"),
    "Ready": Meaning("it works; of a pool: it hands out addresses"),
    "BackendsFound": Meaning("machines are found; the message says which are left out"),
    "Masquerade": Meaning(
        "mode nat hides the client's address, and connections end when the host dies",
        "use mode dsr, or masquerade: false in the agents' files where nodes answer through the host",
    ),
    "AddressAssigned": Meaning("the Service shows its address, and is served there"),
}

TenantReason = Literal["SuddenlySmall", "AddressNotAccepted"]

TENANT: Final[Mapping[TenantReason, Meaning]] = {
    "SuddenlySmall": Meaning(
        "a guest's list of Services lacks more of them than is believed at once; a second list must say so too",
        "if the Services are there, find out why the guest does not see them",
    ),
    "AddressNotAccepted": Meaning("nothing is sent to some of its nodes; the message says to which and why"),
}

PoolStateReason = Literal["InvalidRanges", "OverlapsOlderPool", "AboveThreshold", "NoAddressLeft", "Ready"]

POOL_STATE: Final[Mapping[PoolStateReason, Meaning]] = {
    "Ready": FINE["Ready"],
    "InvalidRanges": Meaning("its ranges are wrong: it hands out nothing", "correct them; what is allocated stays"),
    "OverlapsOlderPool": Meaning(
        "an older pool of the network hands out some of its addresses: here they are left out",
        "take them out of one of the pools",
    ),
    "AboveThreshold": Meaning("nearlyFullPercent of its addresses are taken", "add a range"),
    "NoAddressLeft": Meaning("all its addresses are taken", "add a range"),
}

VerdictReason = Literal[
    "NotNamed",
    "WrongNetwork",
    "NotOpen",
    "OutOfScope",
    "Terminating",
    "InvalidRanges",
    "NoSuchFamily",
    "AddressNotInPool",
]
"""Why one pool was not taken: words of the console's and the conditions' lists."""

VERDICT: Final[Mapping[VerdictReason, Meaning]] = {
    "NotNamed": Meaning("another pool is asked for"),
    "WrongNetwork": Meaning("it is on another network", "ask for the pool's network"),
    "NotOpen": Meaning("the GuestCluster does not allow it", "have the host's operator allow it"),
    "OutOfScope": Meaning("its scope does not have who asks", "have the host's operator add a scope"),
    "Terminating": Meaning("it is being deleted", "use another pool"),
    "InvalidRanges": Meaning("its ranges are wrong", "have the host's operator correct them"),
    "NoSuchFamily": Meaning("it has no address of the family", "ask for another family, or add a range"),
    "AddressNotInPool": Meaning("it does not hand out the address asked for", "ask for another one, or for none"),
}

NewsReason = Literal[
    "AddressReleased",
    "AddressNotRecorded",
    "Released",
    "NotReleased",
    "NoOverlap",
    "AddressesLeft",
    "RulesMended",
    "AddressClaimedByOther",
    "LeaseLost",
    "LoadBalancerDeleted",
    "InvalidWeight",
    "CertificateRenewed",
    "CertificateNotRenewed",
]
"""Reasons that only events have: see :mod:`cloudprovider.core.news`."""

AllocationReason = Literal[NoPoolReason, AddressReason, LeaseReason]
Reason = Literal[
    AllocationReason,
    OwnedReason,
    ProgrammedReason,
    BackendReason,
    MachineReason,
    PlaceReason,
    BridgeReason,
    ServiceReason,
    RequestReason,
    FineReason,
    TenantReason,
    PoolStateReason,
    NewsReason,
]
Word = Reason | Heard
