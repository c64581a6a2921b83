"""Who asks, and what they may do (``authentication.k8s.io/v1``, ``authorization.k8s.io/v1``), as far as it is read.

https://kubernetes.io/docs/reference/access-authn-authz/authorization/#checking-api-access
"""

import msgspec

from cloudprovider.core.api.admission import UserInfo
from cloudprovider.core.api.meta import ApiStruct, KubeObject


class SelfSubjectReviewStatus(ApiStruct, frozen=True, kw_only=True):
    """The API server's answer."""

    user_info: UserInfo = msgspec.field(default_factory=UserInfo)


class SelfSubjectReview(KubeObject, frozen=True, kw_only=True):
    """Created by a user, it comes back with who that is; everybody who is known may."""

    status: SelfSubjectReviewStatus = msgspec.field(default_factory=SelfSubjectReviewStatus)


class ResourceAttributes(ApiStruct, frozen=True, kw_only=True):
    """What would be done. ``namespace`` empty: in all of them, or of a kind that is in none."""

    namespace: str = ""
    verb: str = ""
    group: str = ""
    resource: str = ""
    name: str = ""


class SelfSubjectAccessReviewSpec(ApiStruct, frozen=True, kw_only=True):
    """The question."""

    resource_attributes: ResourceAttributes


class SubjectAccessReviewStatus(ApiStruct, frozen=True, kw_only=True):
    """The answer."""

    allowed: bool = False


class SelfSubjectAccessReview(KubeObject, frozen=True, kw_only=True):
    """Created by a user, it comes back with whether they may do something."""

    spec: SelfSubjectAccessReviewSpec
    status: SubjectAccessReviewStatus = msgspec.field(default_factory=SubjectAccessReviewStatus)
