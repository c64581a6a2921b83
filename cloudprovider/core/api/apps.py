"""What programs run as (apps/v1, core/v1), and what defines kinds (apiextensions.k8s.io/v1), as far as it is read."""

import msgspec

from cloudprovider.core.api.meta import ApiStruct, KubeObject


class LabelSelector(ApiStruct, frozen=True, kw_only=True):
    """metav1.LabelSelector, without expressions."""

    match_labels: dict[str, str] = {}


class ConfigMapReference(ApiStruct, frozen=True, kw_only=True):
    """A ConfigMap that a volume shows."""

    name: str = ""


class Volume(ApiStruct, frozen=True, kw_only=True):
    """spec.volumes[] of a Pod."""

    name: str
    config_map: ConfigMapReference | None = None


class PodSpec(ApiStruct, frozen=True, kw_only=True):
    """spec of a Pod."""

    node_name: str = ""
    volumes: list[Volume] = []


class Pod(KubeObject, frozen=True, kw_only=True):
    """core/v1 Pod."""

    spec: PodSpec = msgspec.field(default_factory=PodSpec)


class PodTemplate(ApiStruct, frozen=True, kw_only=True):
    """What a workload makes Pods of."""

    spec: PodSpec = msgspec.field(default_factory=PodSpec)


class WorkloadSpec(ApiStruct, frozen=True, kw_only=True):
    """spec of a Deployment or DaemonSet; a Deployment that does not say has one replica."""

    replicas: int = 1
    selector: LabelSelector = msgspec.field(default_factory=LabelSelector)
    template: PodTemplate = msgspec.field(default_factory=PodTemplate)


class Deployment(KubeObject, frozen=True, kw_only=True):
    """apps/v1 Deployment."""

    spec: WorkloadSpec = msgspec.field(default_factory=WorkloadSpec)


class DaemonSet(KubeObject, frozen=True, kw_only=True):
    """apps/v1 DaemonSet."""

    spec: WorkloadSpec = msgspec.field(default_factory=WorkloadSpec)


class ConfigMap(KubeObject, frozen=True, kw_only=True):
    """core/v1 ConfigMap."""

    data: dict[str, str] = {}


class DefinitionSchema(ApiStruct, frozen=True, kw_only=True):
    """spec.versions[].schema."""

    open_api_v3_schema: msgspec.Raw = msgspec.field(default=msgspec.Raw(b"{}"), name="openAPIV3Schema")


class DefinitionVersion(ApiStruct, frozen=True, kw_only=True):
    """spec.versions[]; ``subresources`` holds a key for each that there is."""

    name: str
    schema: DefinitionSchema = msgspec.field(default_factory=DefinitionSchema)
    subresources: dict[str, msgspec.Raw] = {}


class Conversion(ApiStruct, frozen=True, kw_only=True):
    """spec.conversion."""

    strategy: str = "None"


class DefinitionSpec(ApiStruct, frozen=True, kw_only=True):
    """spec of a CustomResourceDefinition."""

    conversion: Conversion = msgspec.field(default_factory=Conversion)
    versions: list[DefinitionVersion] = []


class DefinitionStatus(ApiStruct, frozen=True, kw_only=True):
    """status of a CustomResourceDefinition."""

    stored_versions: list[str] = []


class CustomResourceDefinition(KubeObject, frozen=True, kw_only=True):
    """apiextensions.k8s.io/v1 CustomResourceDefinition."""

    spec: DefinitionSpec = msgspec.field(default_factory=DefinitionSpec)
    status: DefinitionStatus = msgspec.field(default_factory=DefinitionStatus)
