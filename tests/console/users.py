"""A user without an API server: the shipped fake, with what it says of who asks."""

from datetime import UTC, datetime
from typing import Any, cast

from typing_extensions import override

from cloudprovider.core.api.access import (
    SelfSubjectAccessReview,
    SelfSubjectReview,
    SelfSubjectReviewStatus,
    SubjectAccessReviewStatus,
)
from cloudprovider.core.api.admission import UserInfo
from cloudprovider.core.errors import Forbidden
from cloudprovider.kube.api import Resource
from cloudprovider.kube.fake import FakeCluster, FakeKubeClient
from cloudprovider.kube.warnings import Warned


def now() -> datetime:
    return datetime(2026, 5, 1, 12, 0, tzinfo=UTC)


class FakeUser(FakeKubeClient):
    """Signed in as ``who``; "wrong" is no token that the cluster knows. It may do everything."""

    def __init__(self, cluster: FakeCluster, who: str) -> None:
        super().__init__(cluster)
        self.who = who
        self.closed = False

    @override
    async def create(
        self, resource: Resource[Any], obj: Any, *, dry_run: bool = False, warned: Warned | None = None
    ) -> Any:
        if isinstance(obj, SelfSubjectReview):
            if self.who == "wrong":
                raise Forbidden("Unauthorized", status=401, reason="Unauthorized")
            return SelfSubjectReview(status=SelfSubjectReviewStatus(user_info=UserInfo(username=f"user-{self.who}")))
        if isinstance(obj, SelfSubjectAccessReview):
            return SelfSubjectAccessReview(spec=obj.spec, status=SubjectAccessReviewStatus(allowed=True))
        return cast("Any", await super().create(resource, obj, dry_run=dry_run, warned=warned))

    async def close(self) -> None:
        self.closed = True
