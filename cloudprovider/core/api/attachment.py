"""k8s.cni.cncf.io/v1 NetworkAttachmentDefinition: what a network that virtual machines join is made of."""

import msgspec

from cloudprovider.core.api.meta import ApiStruct, KubeObject


class NetworkAttachmentDefinitionSpec(ApiStruct, frozen=True, kw_only=True):
    """``config`` is a CNI network configuration in JSON, as text."""

    config: str = ""


class NetworkAttachmentDefinition(KubeObject, frozen=True, kw_only=True):
    """A network by the name that Harvester's users know: "namespace/name"."""

    spec: NetworkAttachmentDefinitionSpec = msgspec.field(default_factory=NetworkAttachmentDefinitionSpec)
