"""The kinds that this project reads or writes."""

from typing import Final

from cloudprovider.core.api.access import SelfSubjectAccessReview, SelfSubjectReview
from cloudprovider.core.api.admission import ValidatingWebhookConfiguration
from cloudprovider.core.api.apps import ConfigMap, CustomResourceDefinition, DaemonSet, Deployment, Pod
from cloudprovider.core.api.attachment import NetworkAttachmentDefinition
from cloudprovider.core.api.bgp import BGPAdvertisement, BGPPeer
from cloudprovider.core.api.guestcluster import GuestCluster
from cloudprovider.core.api.kubernetes import EndpointSlice, Event, Lease, Namespace, Node, Secret, Service
from cloudprovider.core.api.kubevirt import VirtualMachineInstance
from cloudprovider.core.api.loadbalancer import LoadBalancer
from cloudprovider.core.api.meta import KubeObject
from cloudprovider.core.api.pool import IPBlock, IPPool
from cloudprovider.kube.api import Resource

LOADBALANCERS: Final = Resource(
    "loadbalancer.harvesterhci.io", "v1beta1", "loadbalancers", "LoadBalancer", LoadBalancer
)
IPPOOLS: Final = Resource("loadbalancer.harvesterhci.io", "v1beta1", "ippools", "IPPool", IPPool, namespaced=False)
IPBLOCKS: Final = Resource("loadbalancer.harvesterhci.io", "v1beta1", "ipblocks", "IPBlock", IPBlock, namespaced=False)
GUESTCLUSTERS: Final = Resource(
    "cloudprovider.harvesterhci.io", "v1beta1", "guestclusters", "GuestCluster", GuestCluster
)
BGPPEERS: Final = Resource("cloudprovider.harvesterhci.io", "v1beta1", "bgppeers", "BGPPeer", BGPPeer, namespaced=False)
BGPADVERTISEMENTS: Final = Resource(
    "cloudprovider.harvesterhci.io",
    "v1beta1",
    "bgpadvertisements",
    "BGPAdvertisement",
    BGPAdvertisement,
    namespaced=False,
)
NETWORK_ATTACHMENTS: Final = Resource(
    "k8s.cni.cncf.io",
    "v1",
    "network-attachment-definitions",
    "NetworkAttachmentDefinition",
    NetworkAttachmentDefinition,
)
VIRTUAL_MACHINE_INSTANCES: Final = Resource(
    "kubevirt.io", "v1", "virtualmachineinstances", "VirtualMachineInstance", VirtualMachineInstance
)

SERVICES: Final = Resource("", "v1", "services", "Service", Service)
NODES: Final = Resource("", "v1", "nodes", "Node", Node, namespaced=False)
NAMESPACES: Final = Resource("", "v1", "namespaces", "Namespace", Namespace, namespaced=False)
EVENTS: Final = Resource("", "v1", "events", "Event", Event)
ENDPOINTSLICES: Final = Resource("discovery.k8s.io", "v1", "endpointslices", "EndpointSlice", EndpointSlice)
ENDPOINTS: Final = Resource("", "v1", "endpoints", "Endpoints", KubeObject)
LEASES: Final = Resource("coordination.k8s.io", "v1", "leases", "Lease", Lease)
SECRETS: Final = Resource("", "v1", "secrets", "Secret", Secret)
SELF_SUBJECT_REVIEWS: Final = Resource(
    "authentication.k8s.io", "v1", "selfsubjectreviews", "SelfSubjectReview", SelfSubjectReview, namespaced=False
)
SELF_SUBJECT_ACCESS_REVIEWS: Final = Resource(
    "authorization.k8s.io",
    "v1",
    "selfsubjectaccessreviews",
    "SelfSubjectAccessReview",
    SelfSubjectAccessReview,
    namespaced=False,
)
WEBHOOK_CONFIGURATIONS: Final = Resource(
    "admissionregistration.k8s.io",
    "v1",
    "validatingwebhookconfigurations",
    "ValidatingWebhookConfiguration",
    ValidatingWebhookConfiguration,
    namespaced=False,
)

MUTATING_WEBHOOK_CONFIGURATIONS: Final = Resource(
    "admissionregistration.k8s.io",
    "v1",
    "mutatingwebhookconfigurations",
    "MutatingWebhookConfiguration",
    KubeObject,
    namespaced=False,
)

VIRTUAL_MACHINES: Final = Resource("kubevirt.io", "v1", "virtualmachines", "VirtualMachine", KubeObject)
PODS: Final = Resource("", "v1", "pods", "Pod", Pod)
CONFIG_MAPS: Final = Resource("", "v1", "configmaps", "ConfigMap", ConfigMap)
DEPLOYMENTS: Final = Resource("apps", "v1", "deployments", "Deployment", Deployment)
DAEMON_SETS: Final = Resource("apps", "v1", "daemonsets", "DaemonSet", DaemonSet)
DEFINITIONS: Final = Resource(
    "apiextensions.k8s.io",
    "v1",
    "customresourcedefinitions",
    "CustomResourceDefinition",
    CustomResourceDefinition,
    namespaced=False,
)
