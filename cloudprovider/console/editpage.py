"""Creating, editing and deleting a load balancer for virtual machines."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec
from aiohttp import web

from cloudprovider.console import lbform
from cloudprovider.console.forms import BLANK, Checked, refusal, sorted_in, text_of
from cloudprovider.console.gate import is_partial, session_of
from cloudprovider.console.lbform import LbForm
from cloudprovider.console.machines import matching
from cloudprovider.console.namespaces import visible_namespaces
from cloudprovider.console.pages import Pages
from cloudprovider.console.pools import held_of, networks_of, visible_pools
from cloudprovider.console.sessions import Session
from cloudprovider.core.api.loadbalancer import LoadBalancer
from cloudprovider.core.errors import AlreadyExists, Conflict, Forbidden, KubeError, Violation
from cloudprovider.core.pools import survey
from cloudprovider.core.rules.loadbalancers import check_load_balancer, check_quota, choose_pool
from cloudprovider.kube.resources import LOADBALANCERS

TRIES: Final = 3
"""A status that is written between reading and writing is no conflict with the user: read and write again."""
TABS: Final[Mapping[str, str]] = {
    "basic": "Basic",
    "listeners": "Listeners",
    "selector": "Backend Server Selector",
    "check": "Health Check",
}

_encode = msgspec.json.Encoder().encode
_decode_form = msgspec.json.Decoder(LbForm).decode


class EditPage:
    """The form, its checks, and the confirmation of a deletion."""

    def __init__(self, pages: Pages) -> None:
        self._pages = pages

    def routes(self) -> list[web.RouteDef]:
        """What is served."""
        one = "/loadbalancers/{namespace}/{name}"
        return [
            web.get("/loadbalancers/new", self.new),
            web.post("/loadbalancers/new", self.create),
            web.post("/loadbalancers/check", self.check),
            web.get(f"{one}/edit", self.edit),
            web.post(f"{one}/edit", self.change),
            web.get(f"{one}/delete", self.confirm),
            web.post(f"{one}/delete", self.delete),
        ]

    async def new(self, request: web.Request) -> web.Response:
        """An empty form."""
        return await self._form(request, LbForm.blank(request.query.get("namespace", "")[:63]))

    async def create(self, request: web.Request) -> web.Response:
        """Another row, or the load balancer."""
        session, posted = session_of(request), await _posted(request)
        form = LbForm.posted(posted)
        if (action := posted.get("action", "save")) != "save":
            return await self._form(request, form.acted(action), posted=posted, action=action)
        checked = await self._checked(session, form, None)
        if checked.count:
            return await self._form(request, form, checked, posted=posted, status=422)
        try:
            made = await session.client.create(LOADBALANCERS, form.onto(None))
        except KubeError as error:
            return await self._form(request, form, _refused(form, error), posted=posted, status=422)
        return _go(request, _path(made))

    async def edit(self, request: web.Request) -> web.Response:
        """The form, filled in."""
        old = await self._get(request)
        _require_ours(old)
        return await self._form(request, LbForm.of(old), old=old)

    async def change(self, request: web.Request) -> web.Response:
        """Another row, or the change, if nobody else has made one meanwhile."""
        session, posted = session_of(request), await _posted(request)
        old = await self._get(request)
        _require_ours(old)
        form, base = LbForm.posted(posted | _identity(old)), _base(posted, old)
        if (action := posted.get("action", "save")) != "save":
            return await self._form(request, form.acted(action), posted=posted, base=base, old=old, action=action)
        if base != LbForm.of(old) or posted.get("uid", old.metadata.uid) != old.metadata.uid:
            return await self._conflict(request, form, base, old, posted)
        checked = await self._checked(session, form, old)
        if checked.count:
            return await self._form(request, form, checked, posted=posted, base=base, old=old, status=422)
        for _ in range(TRIES):
            try:
                if patch := form.patch(old):
                    await session.client.merge_patch(LOADBALANCERS, *old.key, _from(old, patch))
            except Conflict:
                old = await self._get(request)
                if base != LbForm.of(old):
                    return await self._conflict(request, form, base, old, posted)
            except KubeError as error:
                problems = _refused(form, error)
                return await self._form(request, form, problems, posted=posted, base=base, old=old, status=422)
            else:
                return _go(request, _path(old))
        raise Conflict("it is written all the time: save again", status=409)

    async def check(self, request: web.Request) -> web.Response:
        """What is wrong, what matches, what would be sent: asked for while somebody types."""
        session, posted = session_of(request), await _posted(request)
        form, old = LbForm.posted(posted), None
        if posted.get("uid"):
            old = await session.client.get(LOADBALANCERS, form.namespace, form.name)
        checked = await self._checked(session, form, old, tried=posted.get("tried") == "1")
        values = {"form": form, "checked": checked, "tabs": _tabs(checked), "oob": True}
        values["matches"] = await matching(session.client, form.namespace, form.label_selector)
        return self._pages.page(request, "lb-check.html", values)

    async def confirm(self, request: web.Request) -> web.Response:
        """Ask whether it is meant."""
        return self._pages.page(request, "lb-delete.html", {"lb": await self._get(request)})

    async def delete(self, request: web.Request) -> web.Response:
        """Delete the one that was shown."""
        session, posted = session_of(request), await _posted(request)
        namespace, name = request.match_info["namespace"], request.match_info["name"]
        await session.client.delete(LOADBALANCERS, namespace, name, uid=posted.get("uid", ""))
        return _go(request, "/loadbalancers")

    async def _get(self, request: web.Request) -> LoadBalancer:
        namespace, name = request.match_info["namespace"], request.match_info["name"]
        return await session_of(request).client.get(LOADBALANCERS, namespace, name)

    async def _checked(
        self, session: Session, form: LbForm, old: LoadBalancer | None, *, tried: bool = True
    ) -> Checked:
        """Ask our own rules in process, and with nothing against it the API server, by a dry run. What is blank is told
        of once it was ``tried`` to save."""
        mistakes = form.mistakes()
        patch = form.patch(old) if old is not None else {}
        yaml = text_of(form.manifest()) if old is None else text_of(_from(old, patch)) if patch else ""
        try:
            wanted = form.onto(old)
        except ValueError as error:
            mistakes = mistakes or [Violation(field="", reason="Malformed", message=str(error))]
            return _result(form, mistakes, (), yaml, tried=tried)
        verdict = check_load_balancer(wanted, old)
        told = {v.field for v in mistakes}
        violations = [*mistakes, *(v for v in verdict.violations if v.field not in told)]
        cautions = list(verdict.warnings)
        if not violations:
            violations, more = await self._rehearsed(session, form, wanted, old)
            cautions += more
        return _result(form, violations, cautions, yaml, tried=tried)

    async def _rehearsed(
        self, session: Session, form: LbForm, wanted: LoadBalancer, old: LoadBalancer | None
    ) -> tuple[list[Violation], list[str]]:
        pools, _ = await visible_pools(session)
        view, verdict = choose_pool(wanted, survey(pools)) if pools else (None, None)
        violations, cautions = [], list(verdict.warnings) if verdict is not None else []
        if view is not None and view.pool.spec.addresses_per_tenant:
            quota = check_quota(wanted, view.pool, await held_of(session, view.name))
            violations, cautions = list(quota.violations), [*cautions, *quota.warnings]
        try:
            if old is None:
                await session.client.create(LOADBALANCERS, wanted, dry_run=True)
            elif patch := form.patch(old):
                await session.client.merge_patch(LOADBALANCERS, *old.key, patch, dry_run=True)
        except KubeError as error:
            violations += _told_by(error)
        return violations, cautions

    async def _conflict(
        self, request: web.Request, form: LbForm, base: LbForm, old: LoadBalancer, posted: Mapping[str, str]
    ) -> web.Response:
        theirs = LbForm.of(old)
        kept = lbform.merged(base, theirs, form)
        changed = lbform.differences(base, theirs)
        return await self._form(request, kept, posted=posted, old=old, changed=changed, status=409)

    async def _form(
        self,
        request: web.Request,
        form: LbForm,
        checked: Checked | None = None,
        *,
        posted: Mapping[str, str] | None = None,
        base: LbForm | None = None,
        old: LoadBalancer | None = None,
        changed: Sequence[tuple[str, str, str]] = (),
        action: str = "",
        status: int = 200,
    ) -> web.Response:
        session = session_of(request)
        pools, pools_problem = await visible_pools(session)
        checked = checked or Checked(yaml=text_of(form.manifest()) if old is None else "")
        tabs = _tabs(checked)
        wanted = (posted or {}).get("tab", "basic")
        tab = next((t.name for t in tabs if t.problems), wanted) if checked.count else wanted
        values: dict[str, object] = {
            "form": form,
            "checked": checked,
            "tabs": tabs,
            "tab": tab if tab in TABS else "basic",
            "uid": old.metadata.uid if old is not None else "",
            "base": _encode(base or LbForm.of(old)).decode() if old is not None else "",
            "changed": changed,
            "action": action,
            "tried": "1" if checked.count or (posted or {}).get("tried") == "1" else "",
            "pools": pools,
            "pools_problem": pools_problem,
            "networks": networks_of(pools),
            "namespaces": await visible_namespaces(session) if old is None else (),
            "protocols": lbform.PROTOCOLS,
            "kinds": lbform.CHECKS,
            "matches": await matching(session.client, form.namespace, form.label_selector),
            "oob": False,
        }
        template = "lb-editor.html" if is_partial(request) else "lb-form.html"
        return self._pages.page(request, template, values, status=status)


class Tab(msgspec.Struct, frozen=True):
    """A tab of the form, and how many problems are in it."""

    name: str
    title: str
    problems: int


def _tabs(checked: Checked) -> list[Tab]:
    def tab_of(slot: str) -> str:
        head = slot.partition(".")[0]
        return {"listeners": "listeners", "backendServerSelector": "selector", "healthCheck": "check"}.get(
            head, "basic"
        )

    counts = dict.fromkeys(TABS, 0)
    for slot, told in checked.problems.items():
        counts[tab_of(slot)] += len(told)
    return [Tab(name, title, counts[name]) for name, title in TABS.items()]


def _result(
    form: LbForm, violations: Sequence[Violation], cautions: Sequence[str], yaml: str, *, tried: bool
) -> Checked:
    shown = [v for v in violations if tried or v.reason != BLANK]
    return Checked(
        problems=sorted_in(shown, form.slots, lbform.ALIASES),
        cautions={"ipPool": cautions} if cautions else {},
        yaml=yaml,
        blanks=len(violations) - len(shown),
    )


def _told_by(error: KubeError) -> tuple[Violation, ...]:
    match error:
        case AlreadyExists():
            message = "there is a load balancer of this name in this namespace already"
            return (Violation(field="metadata.name", reason="Duplicate", message=message),)
        case Forbidden() if error.status == 401:
            raise error
        case Forbidden():
            message = f"you may not save this; the API server says: {error}"
            return (Violation(field="", reason="Forbidden", message=message),)
        case _:
            return refusal(error)


def _refused(form: LbForm, error: KubeError) -> Checked:
    problems = sorted_in(_told_by(error), form.slots, lbform.ALIASES)
    return Checked(problems=problems, yaml=text_of(form.manifest()))


def _base(posted: Mapping[str, str], old: LoadBalancer) -> LbForm:
    try:
        return _decode_form(posted.get("base", ""))
    except msgspec.DecodeError:
        return LbForm.of(old)


def _identity(old: LoadBalancer) -> dict[str, str]:
    return {"namespace": old.metadata.namespace, "name": old.metadata.name}


def _from(old: LoadBalancer, patch: Mapping[str, Any]) -> dict[str, Any]:
    """The patch, for just the version that was read."""
    return {**patch, "metadata": {"resourceVersion": old.metadata.resource_version, **patch.get("metadata", {})}}


def _require_ours(lb: LoadBalancer) -> None:
    if lb.spec.workload_type == "cluster":
        raise web.HTTPForbidden(text="This is a guest cluster's Service: it is changed there, here it is only shown.")


def _path(lb: LoadBalancer) -> str:
    return f"/loadbalancers/{lb.metadata.namespace}/{lb.metadata.name}"


def _go(request: web.Request, path: str) -> web.Response:
    if is_partial(request):
        return web.Response(status=200, headers={"HX-Redirect": path})
    return web.Response(status=303, headers={"Location": path})


async def _posted(request: web.Request) -> dict[str, str]:
    form = await request.post()
    return {name: value for name, value in form.items() if isinstance(value, str)}
