"""What the API server asks before it stores a pool or a load balancer, answered.

Pool edits are rare and a wrong one hurts, so nothing here relies on a cache, or on leading: pools and blocks are read
from the API server for each question. What can't be read in time refuses a pool's change, and lets a load balancer
pass with a warning, as the controller checks that again and says what is wrong in a condition.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Final

import msgspec

from cloudprovider.core.api.admission import (
    REVIEW_API_VERSION,
    REVIEW_KIND,
    AdmissionRequest,
    AdmissionResponse,
    AdmissionReview,
    AdmissionReviewAnswer,
    RefusalStatus,
    StatusCause,
    StatusDetails,
)
from cloudprovider.core.api.loadbalancer import LoadBalancer
from cloudprovider.core.api.meta import KubeObject
from cloudprovider.core.api.pool import BLOCK_POOL_LABEL, MANUALLY_RELEASE_ANNOTATION, IPPool, IPPoolSpec
from cloudprovider.core.errors import InvalidRequest, KubeError, NotFound, Unavailable, Violation
from cloudprovider.core.metrics.definition import OTHER
from cloudprovider.core.naming import label_value
from cloudprovider.core.pools import survey
from cloudprovider.core.rules.holdings import Holding, holdings
from cloudprovider.core.rules.loadbalancers import advise, check_load_balancer, check_quota, choose_pool
from cloudprovider.core.rules.pools import check_deletion, check_pool, looks_at_holders
from cloudprovider.core.rules.release import ReleaseOrder, check_release, parse_release
from cloudprovider.core.rules.verdict import Verdict
from cloudprovider.kube.api import KubeClient
from cloudprovider.kube.resources import IPBLOCKS, IPPOOLS, LOADBALANCERS

DEADLINE: Final = 3.0
"""Seconds for one answer; below the webhooks' timeoutSeconds (5), so that it is ours, and says what is wrong."""
AT_ONCE: Final = 4
"""Questions being answered; a pool of 65,000 addresses takes some 10 MB meanwhile. The others wait, to the deadline."""
WARNING_LENGTH: Final = 1024
"""Characters of a warning; the API server passes on 4,096 of all together."""

_decode_review = msgspec.json.Decoder(AdmissionReview).decode
_decode_pool = msgspec.json.Decoder(IPPool).decode
_decode_head = msgspec.json.Decoder(KubeObject).decode
_decode_load_balancer = msgspec.json.Decoder(LoadBalancer).decode
_encode = msgspec.json.Encoder().encode


class AdmissionWebhook:
    """Answers reviews. ``reviews`` counts them as (resource, outcome): allowed, refused, or unread; ``took`` is told
    the resource and the seconds."""

    def __init__(
        self,
        client: KubeClient,
        *,
        deadline: float = DEADLINE,
        took: Callable[[str, float], None] = lambda _resource, _seconds: None,
    ) -> None:
        self.reviews: Counter[tuple[str, ...]] = Counter()
        self._took = took
        self._client = client
        self._deadline = deadline
        self._slots = asyncio.Semaphore(AT_ONCE)

    async def answer(self, body: bytes) -> bytes:
        """Return the answer to an AdmissionReview. Raises ValueError if ``body`` is none."""
        try:
            request = _decode_review(body.decode()).request  # text first: what is in it is read later, piece by piece
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise ValueError(f"no AdmissionReview of {REVIEW_API_VERSION}: {error}") from error
        began = time.monotonic()
        outcome, response = await self._review(request)
        resource = _known(request.resource.resource)
        self.reviews[resource, outcome] += 1
        self._took(resource, time.monotonic() - began)
        return _encode(AdmissionReviewAnswer(api_version=REVIEW_API_VERSION, kind=REVIEW_KIND, response=response))

    async def _review(self, request: AdmissionRequest) -> tuple[str, AdmissionResponse]:
        try:
            verdict = await self._judge_in_time(request)
        except KubeError as error:
            if request.resource.resource == LOADBALANCERS.plural:
                return "unread", _allowed(request, [f"not checked beforehand, the controller will: {error}"])
            return "unread", _unread(request, error)
        except msgspec.DecodeError as error:
            verdict = Verdict((Violation(field="", reason="Unreadable", message=f"the object can't be read: {error}"),))
        if verdict.violations:
            return "refused", _refused(request, verdict)
        return "allowed", _allowed(request, verdict.warnings)

    async def _judge_in_time(self, request: AdmissionRequest) -> Verdict:
        try:
            async with asyncio.timeout(self._deadline), self._slots:
                return await self._judge(request)
        except TimeoutError:
            raise Unavailable(f"the API server has not answered within {self._deadline:g} s") from None

    async def _judge(self, request: AdmissionRequest) -> Verdict:
        match request.resource.resource, request.operation:
            case IPPOOLS.plural, "DELETE":
                # Of many deleted at once (deletecollection) each is asked about, and the request names none.
                name = request.name or _decode_head(request.old_object).metadata.name
                return check_deletion(name, await self._held(name))
            case IPPOOLS.plural, "CREATE" | "UPDATE":
                new = _decode_pool(request.object)
                return await self._pool(new, _old_pool(request, new))
            case LOADBALANCERS.plural, "CREATE" | "UPDATE":
                return await self._load_balancer(_decode_load_balancer(request.object), _old_load_balancer(request))
            case _:
                return Verdict(warnings=("the webhook has no rules for this: its configuration asks too much of it",))

    async def _pool(self, new: IPPool, old: IPPool | None) -> Verdict:
        verdict, order = Verdict(), None
        text = new.metadata.annotations.get(MANUALLY_RELEASE_ANNOTATION, "")
        if text and (old is None or old.metadata.annotations.get(MANUALLY_RELEASE_ANNOTATION) != text):
            try:
                order = parse_release(text)
            except InvalidRequest as wrong:
                verdict += Verdict(wrong.violations)
        held: Sequence[Holding] = ()
        if order is not None or looks_at_holders(new, old):
            held = await self._held(new.metadata.name)
        if order is not None:
            verdict += check_release(order, held, exists=await self._exists(order))
        if old is None or old.spec != new.spec:
            others = (await self._client.list(IPPOOLS)).items
            verdict = await asyncio.to_thread(check_pool, new, old, others, held) + verdict
        return verdict

    async def _load_balancer(self, new: LoadBalancer, old: LoadBalancer | None) -> Verdict:
        verdict = check_load_balancer(new, old)
        if verdict.violations or verdict.warnings:
            return verdict  # nothing more can be said of what is unsound
        verdict += advise(new)
        pool, choice = choose_pool(new, survey((await self._client.list(IPPOOLS)).items))
        verdict += choice
        if pool is not None and pool.pool.spec.addresses_per_tenant:
            verdict += check_quota(new, pool.pool, await self._held(pool.name))
        return verdict

    async def _held(self, pool: str) -> Sequence[Holding]:
        found = await self._client.list(IPBLOCKS, label_selector=f"{BLOCK_POOL_LABEL}={label_value(pool)}")
        # Half a second of arithmetic where 65,000 addresses are held: the loop has more to do meanwhile.
        return await asyncio.to_thread(holdings, found.items)

    async def _exists(self, order: ReleaseOrder) -> bool:
        try:
            await self._client.get(LOADBALANCERS, order.namespace, order.name)
        except NotFound:
            return False
        return True


def _known(resource: str) -> str:
    """The resource, if it is one that there are rules for: whoever asks can ask of anything."""
    return resource if resource in (IPPOOLS.plural, LOADBALANCERS.plural) else OTHER


def _old_pool(request: AdmissionRequest, new: IPPool) -> IPPool | None:
    """The pool before the change; None when it is created. One that can't be read handed out nobody knows what."""
    if request.operation == "CREATE":
        return None
    try:
        return _decode_pool(request.old_object)
    except msgspec.DecodeError:
        return IPPool(metadata=new.metadata, spec=IPPoolSpec(ranges=[], selector=new.spec.selector))


def _old_load_balancer(request: AdmissionRequest) -> LoadBalancer | None:
    """The load balancer before the change; None when it is created, or could not be read."""
    if request.operation == "CREATE":
        return None
    try:
        return _decode_load_balancer(request.old_object)
    except msgspec.DecodeError:
        return None


def _allowed(request: AdmissionRequest, warnings: Sequence[str]) -> AdmissionResponse:
    return AdmissionResponse(uid=request.uid, allowed=True, warnings=_short(warnings))


def _refused(request: AdmissionRequest, verdict: Verdict) -> AdmissionResponse:
    """All that is wrong at once: in one sentence, and as causes, which kubectl shows line by line."""
    message = str(InvalidRequest(*verdict.violations))
    causes = [StatusCause(reason=v.reason, message=v.message, field=v.field) for v in verdict.violations]
    if request.operation == "DELETE":
        return _failure(request, message, reason="Conflict", code=409, causes=causes, warnings=verdict.warnings)
    return _failure(request, message, reason="Invalid", code=422, causes=causes, warnings=verdict.warnings)


def _unread(request: AdmissionRequest, error: KubeError) -> AdmissionResponse:
    message = f"what it has to be compared with can't be read now, try again: {error}"
    return _failure(request, message, reason="ServiceUnavailable", code=503)


def _failure(
    request: AdmissionRequest,
    message: str,
    *,
    reason: str,
    code: int,
    causes: Sequence[StatusCause] = (),
    warnings: Sequence[str] = (),
) -> AdmissionResponse:
    kind = LOADBALANCERS.kind if request.resource.resource == LOADBALANCERS.plural else IPPOOLS.kind
    details = StatusDetails(name=request.name, group=request.resource.group, kind=kind, causes=list(causes))
    status = RefusalStatus(status="Failure", message=message, reason=reason, details=details, code=code)
    return AdmissionResponse(uid=request.uid, allowed=False, status=status, warnings=_short(warnings))


def _short(warnings: Sequence[str]) -> list[str]:
    return [w if len(w) <= WARNING_LENGTH else f"{w[: WARNING_LENGTH - 1]}…" for w in warnings]
