"""Admission webhooks: what an API server asks and is answered (``admission.k8s.io/v1``), and the object that tells it
whom to ask (``admissionregistration.k8s.io/v1``), as far as they are read.

https://kubernetes.io/docs/reference/access-authn-authz/extensible-admission-controllers/
"""

from typing import Literal

import msgspec

from cloudprovider.core.api.meta import ApiStruct, KubeObject

REVIEW_API_VERSION = "admission.k8s.io/v1"
REVIEW_KIND = "AdmissionReview"

_NULL = msgspec.Raw(b"null")


class GroupVersionResource(ApiStruct, frozen=True, kw_only=True):
    """Which kind of object a request is about."""

    group: str = ""
    version: str = ""
    resource: str = ""


class UserInfo(ApiStruct, frozen=True, kw_only=True):
    """Who made the request."""

    username: str = ""


class AdmissionRequest(ApiStruct, frozen=True, kw_only=True):
    """What is about to happen. ``object`` and ``old_object`` are JSON, ``null`` where there is none."""

    uid: str
    resource: GroupVersionResource
    name: str = ""
    namespace: str = ""
    operation: Literal["CREATE", "UPDATE", "DELETE", "CONNECT"]
    user_info: UserInfo = msgspec.field(default_factory=UserInfo)
    object: msgspec.Raw = _NULL
    old_object: msgspec.Raw = _NULL


class StatusCause(ApiStruct, frozen=True, kw_only=True):
    """One thing that is wrong. ``reason`` is a CamelCase word, ``field`` a path as the user wrote it."""

    reason: str
    message: str
    field: str = ""


class StatusDetails(ApiStruct, frozen=True, kw_only=True):
    """What a refusal is about: clients show the causes one by one."""

    name: str = ""
    group: str = ""
    kind: str = ""
    causes: list[StatusCause] = []


class RefusalStatus(ApiStruct, frozen=True, kw_only=True):
    """meta/v1 Status of a request that is refused; ``code`` is an HTTP status."""

    status: Literal["Failure"]
    message: str
    reason: str
    details: StatusDetails
    code: int


class AdmissionResponse(ApiStruct, frozen=True, kw_only=True):
    """The answer. ``warnings`` are shown to the user whether it is allowed or not."""

    uid: str
    allowed: bool
    status: RefusalStatus | None = None
    warnings: list[str] = []


class AdmissionReview(ApiStruct, frozen=True, kw_only=True):
    """A question, as it comes."""

    api_version: Literal["admission.k8s.io/v1"]
    kind: Literal["AdmissionReview"]
    request: AdmissionRequest


class AdmissionReviewAnswer(ApiStruct, frozen=True, kw_only=True):
    """An answer, as it goes."""

    api_version: str
    kind: str
    response: AdmissionResponse


class WebhookService(ApiStruct, frozen=True, kw_only=True):
    """The Service that a webhook is called by, in the cluster itself."""

    namespace: str
    name: str


class WebhookClientConfig(ApiStruct, frozen=True, kw_only=True):
    """How a webhook is called: ``service`` or ``url``. ``ca_bundle``: PEM, in base64."""

    service: WebhookService | None = None
    url: str = ""
    ca_bundle: str = ""


class RegisteredWebhook(ApiStruct, frozen=True, kw_only=True):
    """One webhook of a configuration."""

    name: str
    client_config: WebhookClientConfig


class ValidatingWebhookConfiguration(KubeObject, frozen=True, kw_only=True):
    """admissionregistration.k8s.io/v1 ValidatingWebhookConfiguration."""

    webhooks: list[RegisteredWebhook] = []
