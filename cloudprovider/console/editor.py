"""Creating, editing and deleting by a form: the same for all kinds.

A form is checked while it is filled in, by the rules in process and by a dry run with the user's own token. A change
is a merge patch of the fields that the form has, so all others stay; it is made if nobody else has changed the object
since the form was opened, and else shown with what they have changed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Generic, Protocol, Self, TypeVar

import msgspec
from aiohttp import web

from cloudprovider.console.forms import BLANK, Checked, cautions_in, differences, merged, refusal, sorted_in, text_of
from cloudprovider.console.gate import is_partial, session_of
from cloudprovider.console.pages import Pages
from cloudprovider.console.sessions import Session
from cloudprovider.core.api.meta import KubeObject
from cloudprovider.core.errors import AlreadyExists, Conflict, Forbidden, KubeError, Violation
from cloudprovider.core.rules.verdict import Verdict
from cloudprovider.kube.api import Resource

TRIES: Final = 3
"""A status that is written between reading and writing is no conflict with the user: read and write again."""

T = TypeVar("T", bound=KubeObject)


class Form(Protocol[T]):
    """What is typed: a frozen dataclass. See :class:`~cloudprovider.console.lbform.LbForm`."""

    @classmethod
    def posted(cls, posted: Mapping[str, str]) -> Self:
        """Read what was posted."""
        ...

    @classmethod
    def of(cls, obj: T) -> Self:
        """Fill it in from what there is."""
        ...

    @property
    def slots(self) -> tuple[str, ...]:
        """Where something can be told."""
        ...

    def acted(self, action: str) -> Self:
        """The same with a row more or less."""
        ...

    def manifest(self) -> dict[str, Any]:
        """The whole object as it is created."""
        ...

    def patch(self, old: T) -> dict[str, Any]:
        """The merge patch that makes ``old`` what the form says; empty: it is that already."""
        ...

    def onto(self, old: T | None) -> T:
        """The object as it would be. Raises ValueError for what can't be sent."""
        ...

    def mistakes(self) -> list[Violation]:
        """What is wrong with what was typed, before any rule is asked."""
        ...

    def sendable(self) -> tuple[Self, tuple[str, ...]]:
        """The same without what can't be sent yet, and the paths of the fields that are not whole for it."""
        ...


F = TypeVar("F", bound=Form[Any])


class Tab(msgspec.Struct, frozen=True):
    """A tab of the form, and how many problems are in it."""

    name: str
    title: str
    problems: int


@dataclass(frozen=True, kw_only=True)
class Pathways:
    """Where a kind's pages are, and what they are made of.

    ``name``: prefix of its templates; ``listing``: path of the list; ``one``: path of an object, with its parts open;
    ``aliases``: paths of fields that have a slot of another name; ``titles``: what fields are called by people;
    ``tabs``: of the form, with titles; ``tab_of``: from the first part of a slot to its tab (the first tab has the
    rest); ``cautions_at``: the slot of warnings that name no field.
    """

    name: str
    listing: str
    one: str
    aliases: Mapping[str, str]
    titles: Mapping[str, str]
    tabs: Mapping[str, str]
    tab_of: Mapping[str, str]
    cautions_at: str = ""


class Kind(Protocol[F, T]):
    """What one kind of object says of itself."""

    @property
    def resource(self) -> Resource[T]:
        """The kind."""
        ...

    @property
    def form(self) -> type[F]:
        """Its form."""
        ...

    @property
    def ways(self) -> Pathways:
        """Its pages."""
        ...

    def blank(self, request: web.Request) -> F:
        """A new form."""
        ...

    def key(self, source: Mapping[str, str]) -> tuple[str, str]:
        """Namespace and name, from a URL's parts or a form."""
        ...

    def require_editable(self, obj: T) -> None:
        """Raise HTTPForbidden for what is only shown."""
        ...

    async def judge(self, session: Session, wanted: T, old: T | None) -> Verdict:
        """Ask the rules of admission, in process, as far as the user may read what they look at."""
        ...

    async def judge_deletion(self, session: Session, obj: T) -> Verdict:
        """Ask the rules of deletion."""
        ...

    async def choices(self, session: Session, form: F, old: T | None) -> dict[str, object]:
        """What the form offers."""
        ...

    async def matches(self, session: Session, form: F) -> dict[str, object]:
        """What is shown anew while somebody types, beside the rules."""
        ...


class Editor(Generic[F, T]):
    """The pages of one kind."""

    def __init__(self, pages: Pages, kind: Kind[F, T]) -> None:
        self._pages = pages
        self._kind = kind
        self._ways = kind.ways

    def routes(self) -> list[web.RouteDef]:
        """What is served."""
        listing, one = self._ways.listing, self._ways.one
        return [
            web.get(f"{listing}/new", self.new),
            web.post(f"{listing}/new", self.create),
            web.post(f"{listing}/check", self.check),
            web.get(f"{one}/edit", self.edit),
            web.post(f"{one}/edit", self.change),
            web.get(f"{one}/delete", self.confirm),
            web.post(f"{one}/delete", self.delete),
        ]

    # -- pages ---------------------------------------------------------------------------------------------------

    async def new(self, request: web.Request) -> web.Response:
        """An empty form."""
        return await self._form(request, self._kind.blank(request))

    async def create(self, request: web.Request) -> web.Response:
        """Another row, or the object."""
        session, posted = session_of(request), await posted_of(request)
        form = self._kind.form.posted(posted)
        if (action := posted.get("action", "save")) != "save":
            return await self._form(request, form.acted(action), posted=posted, action=action)
        checked = await self._checked(session, form, None)
        if checked.count:
            return await self._form(request, form, checked, posted=posted, status=422)
        try:
            made = await session.client.create(self._kind.resource, form.onto(None), warned=session.tell)
        except KubeError as error:
            return await self._form(request, form, self._refused(form, error), posted=posted, status=422)
        return go(request, self._path(made))

    async def edit(self, request: web.Request) -> web.Response:
        """The form, filled in."""
        old = await self._get(request)
        self._kind.require_editable(old)
        return await self._form(request, self._kind.form.of(old), old=old)

    async def change(self, request: web.Request) -> web.Response:
        """Another row, or the change, if nobody else has made one meanwhile."""
        session, posted = session_of(request), await posted_of(request)
        old = await self._get(request)
        self._kind.require_editable(old)
        namespace, name = old.key
        form, base = self._kind.form.posted(posted | {"namespace": namespace, "name": name}), self._base(posted, old)
        if (action := posted.get("action", "save")) != "save":
            return await self._form(request, form.acted(action), posted=posted, base=base, old=old, action=action)
        if base != self._kind.form.of(old) or posted.get("uid", "") != old.metadata.uid:
            return await self._conflict(request, form, base, old, posted)
        checked = await self._checked(session, form, old)
        if checked.count:
            return await self._form(request, form, checked, posted=posted, base=base, old=old, status=422)
        for _ in range(TRIES):
            try:
                if patch := form.patch(old):
                    await session.client.merge_patch(
                        self._kind.resource, *old.key, _at_version(old, patch), warned=session.tell
                    )
            except Conflict:
                old = await self._get(request)
                if base != self._kind.form.of(old):
                    return await self._conflict(request, form, base, old, posted)
            except KubeError as error:
                told = self._refused(form, error)
                return await self._form(request, form, told, posted=posted, base=base, old=old, status=422)
            else:
                return go(request, self._path(old))
        raise Conflict("it is written all the time: save again", status=409)

    async def check(self, request: web.Request) -> web.Response:
        """What is wrong, and what would be sent: asked for while somebody types."""
        session, posted = session_of(request), await posted_of(request)
        form = self._kind.form.posted(posted)
        old = await session.client.get(self._kind.resource, *self._kind.key(posted)) if posted.get("uid") else None
        checked = await self._checked(session, form, old, tried=posted.get("tried") == "1")
        values = {"form": form, "checked": checked, "tabs": self._tabs(checked), "oob": True}
        return self._pages.page(
            request, f"{self._ways.name}-check.html", values | await self._kind.matches(session, form)
        )

    async def confirm(self, request: web.Request) -> web.Response:
        """Ask whether it is meant."""
        obj = await self._get(request)
        verdict = await self._kind.judge_deletion(session_of(request), obj)
        return self._pages.page(request, f"{self._ways.name}-delete.html", {"obj": obj, "verdict": verdict})

    async def delete(self, request: web.Request) -> web.Response:
        """Delete the one that was shown."""
        session, posted = session_of(request), await posted_of(request)
        await session.client.delete(self._kind.resource, *self._kind.key(request.match_info), uid=posted.get("uid", ""))
        return go(request, self._ways.listing)

    # -- underneath ----------------------------------------------------------------------------------------------

    async def _get(self, request: web.Request) -> T:
        return await session_of(request).client.get(self._kind.resource, *self._kind.key(request.match_info))

    def _path(self, obj: T) -> str:
        return self._ways.one.format(namespace=obj.metadata.namespace, name=obj.metadata.name)

    async def _checked(self, session: Session, form: F, old: T | None, *, tried: bool = True) -> Checked:
        """Ask our own rules, and with nothing against it the API server, by a dry run. What is blank is told of once it
        was ``tried`` to save."""
        mistakes = form.mistakes()
        yaml = _yaml(form, old)
        try:
            wanted: T = form.onto(old)
        except ValueError as error:
            mistakes = mistakes or [Violation(field="", reason="Malformed", message=str(error))]
            return self._result(form, [*mistakes, *await self._rest(session, form, old)], (), yaml, tried=tried)
        verdict = await self._kind.judge(session, wanted, old)
        told = {v.field for v in mistakes}
        violations = [*mistakes, *(v for v in verdict.violations if v.field not in told)]
        heard: list[str] = list(verdict.warnings)
        if not violations:
            kind, warned = self._kind.resource, heard.append
            try:
                if old is None:
                    await session.client.create(kind, wanted, dry_run=True, warned=warned)
                elif patch := form.patch(old):
                    await session.client.merge_patch(kind, *old.key, patch, dry_run=True, warned=warned)
            except KubeError as error:
                violations = list(_told_by(error))
        return self._result(form, violations, heard, yaml, tried=tried)

    async def _rest(self, session: Session, form: F, old: T | None) -> list[Violation]:
        """What the rules say of the rest, where something can't be sent as it was typed."""
        rest, parts = form.sendable()
        try:
            verdict = await self._kind.judge(session, rest.onto(old), old)
        except ValueError:
            return []
        told = {v.field for v in form.mistakes()}
        return [v for v in verdict.violations if not v.field.startswith(parts) and v.field not in told]

    def _result(
        self, form: F, violations: Sequence[Violation], warnings: Sequence[str], yaml: str, *, tried: bool
    ) -> Checked:
        shown = [v for v in violations if tried or v.reason != BLANK]
        return Checked(
            problems=sorted_in(shown, form.slots, self._ways.aliases),
            cautions=cautions_in(warnings, form.slots, self._ways.aliases, self._ways.cautions_at),
            yaml=yaml,
            blanks=len(violations) - len(shown),
        )

    def _refused(self, form: F, error: KubeError) -> Checked:
        return self._result(form, _told_by(error), (), text_of(form.manifest()), tried=True)

    async def _conflict(
        self, request: web.Request, form: F, base: F, old: T, posted: Mapping[str, str]
    ) -> web.Response:
        theirs = self._kind.form.of(old)
        changed = differences(base, theirs, self._ways.titles) or [("the object", "one", "another of the same name")]
        kept = merged(base, theirs, form)
        return await self._form(request, kept, posted=posted, old=old, changed=changed, status=409)

    async def _form(
        self,
        request: web.Request,
        form: F,
        checked: Checked | None = None,
        *,
        posted: Mapping[str, str] | None = None,
        base: F | None = None,
        old: T | None = None,
        changed: Sequence[tuple[str, str, str]] = (),
        action: str = "",
        status: int = 200,
    ) -> web.Response:
        session, posted = session_of(request), posted or {}
        checked = checked or Checked(yaml=_yaml(form, old))
        tabs = self._tabs(checked)
        first = next(iter(self._ways.tabs))
        tab = next((t.name for t in tabs if t.problems), posted.get("tab", first))
        values: dict[str, object] = {
            "form": form,
            "checked": checked,
            "tabs": tabs,
            "tab": tab if tab in self._ways.tabs else first,
            "uid": old.metadata.uid if old is not None else "",
            "base": msgspec.json.encode(base or self._kind.form.of(old)).decode() if old is not None else "",
            "changed": changed,
            "action": action,
            "tried": "1" if checked.count or posted.get("tried") == "1" else "",
            "oob": False,
            "listing": self._ways.listing,
        }
        values |= await self._kind.choices(session, form, old)
        values |= await self._kind.matches(session, form)
        part = "editor" if is_partial(request) else "form"
        return self._pages.page(request, f"{self._ways.name}-{part}.html", values, status=status)

    def _base(self, posted: Mapping[str, str], old: T) -> F:
        try:
            base: F = msgspec.json.decode(posted.get("base", ""), type=self._kind.form)
        except msgspec.DecodeError:
            return self._kind.form.of(old)
        return base

    def _tabs(self, checked: Checked) -> list[Tab]:
        counts = dict.fromkeys(self._ways.tabs, 0)
        first = next(iter(self._ways.tabs))
        for slot, told in checked.problems.items():
            counts[self._ways.tab_of.get(slot.partition(".")[0], first)] += len(told)
        return [Tab(name, title, counts[name]) for name, title in self._ways.tabs.items()]


async def posted_of(request: web.Request) -> dict[str, str]:
    """What was posted, as text."""
    form = await request.post()
    return {name: value for name, value in form.items() if isinstance(value, str)}


def go(request: web.Request, path: str) -> web.Response:
    """Send the browser on, after a change."""
    if is_partial(request):
        return web.Response(status=200, headers={"HX-Redirect": path})
    return web.Response(status=303, headers={"Location": path})


def _at_version(old: KubeObject, patch: Mapping[str, Any]) -> dict[str, Any]:
    """The patch, for just the version that was read."""
    return {**patch, "metadata": {"resourceVersion": old.metadata.resource_version, **patch.get("metadata", {})}}


def _yaml(form: Form[T], old: T | None) -> str:
    """What would be sent; empty: nothing."""
    if old is None:
        return text_of(form.manifest())
    patch = form.patch(old)
    return text_of(_at_version(old, patch)) if patch else ""


def _told_by(error: KubeError) -> tuple[Violation, ...]:
    match error:
        case AlreadyExists():
            message = "there is one of this name already"
            return (Violation(field="metadata.name", reason="Duplicate", message=message),)
        case Forbidden() if error.status == 401:
            raise error
        case Forbidden():
            message = f"you may not save this; the API server says: {error}"
            return (Violation(field="", reason="Forbidden", message=message),)
        case _:
            return refusal(error)
