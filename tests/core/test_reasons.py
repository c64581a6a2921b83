"""Nothing that programs of ours say is missing in the tables that the reference is generated from.

mypy refuses a word that is in no group (Violation, Problem, Refusal, conditions.condition, News). Here: that each group
has its table, and that nothing goes by these."""

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import get_args

import pytest

import cloudprovider
from cloudprovider.bridge.api import Reason as BridgeWord
from cloudprovider.core import guestreasons, news, reasons, rulings
from cloudprovider.core.conditiontypes import CONDITIONS, Type
from cloudprovider.core.rulings import Meaning, by_word
from cloudprovider.dhcp.effects import Reason as DhcpWord

PACKAGE = Path(cloudprovider.__file__).parent

GROUPS: tuple[tuple[object, Mapping[str, Meaning]], ...] = (
    (reasons.NoPoolReason, by_word(reasons.POOL)),
    (reasons.AddressReason, by_word(reasons.ADDRESS)),
    (reasons.LeaseReason, by_word(reasons.LEASE)),
    (reasons.ProgrammedReason, by_word(reasons.PROGRAMMED)),
    (reasons.PlaceReason, by_word(reasons.PLACE)),
    (reasons.MachineReason, by_word(reasons.MACHINE)),
    (reasons.BackendReason, by_word(reasons.BACKEND)),
    (guestreasons.BridgeReason, by_word(guestreasons.BRIDGE)),
    (guestreasons.ServiceReason, by_word(guestreasons.SERVICE)),
    (reasons.FineReason, by_word(reasons.FINE)),
    (reasons.TenantReason, by_word(reasons.TENANT)),
    (reasons.PoolStateReason, by_word(reasons.POOL_STATE)),
    (reasons.VerdictReason, by_word(reasons.VERDICT)),
    (rulings.LimitReason, by_word(rulings.ALLOWED)),
    (rulings.RequestReason, by_word(rulings.REQUEST)),
)


@pytest.mark.parametrize(("group", "table"), GROUPS)
def test_each_group_of_reasons_has_a_meaning_for_each(group: object, table: Mapping[str, Meaning]) -> None:
    assert set(get_args(group)) == set(table)
    assert all(meaning.text for meaning in table.values())


def test_every_reason_is_one_of_a_condition_an_event_or_a_refusal() -> None:
    """So all of them stand in the reference."""
    said = set(get_args(rulings.RuledReason))
    said |= {word for condition in CONDITIONS for word in condition.reasons}
    said |= {one.reason for one in news.NEWS if isinstance(one, news.News)}
    said |= {word for one in news.NEWS if isinstance(one, news.Echo) for word in one.reasons}
    assert set(get_args(reasons.Reason)) - said == set()


def test_every_condition_has_its_entry() -> None:
    assert {condition.type for condition in CONDITIONS} == set(get_args(Type))
    assert len({(condition.kind, condition.type) for condition in CONDITIONS}) == len(CONDITIONS)


def test_words_of_the_dhcp_client_and_the_bridge_are_known() -> None:
    """They come as values of an enumeration, which mypy can't compare with a Literal."""
    assert {str(word) for word in DhcpWord} <= set(get_args(reasons.LeaseReason))
    camel = {"".join(part.capitalize() for part in word.split("_")) for word in BridgeWord}
    assert camel <= set(get_args(guestreasons.BridgeReason))


def test_conditions_are_made_by_the_one_function_for_it() -> None:
    makers = {path for path, call in _calls() if isinstance(call.func, ast.Name) and call.func.id == "Condition"}
    assert makers == {"core/conditions.py"}


KINDS = {
    "SERVICES": "Service",
    "NODES": "Node",
    "LOADBALANCERS": "LoadBalancer",
    "IPPOOLS": "IPPool",
    "SECRETS": "Secret",
}


def test_events_are_about_the_kind_and_of_the_program_that_their_entry_names() -> None:
    told = set()
    for path, call in _calls():
        if isinstance(call.func, ast.Attribute) and call.func.attr == "record" and len(call.args) == 4:
            resource, what = call.args[0], call.args[2]
            if isinstance(what, ast.Call) and isinstance(what.func, ast.Attribute):
                what = what.func.value  # ECHO.because(...)
            assert isinstance(resource, ast.Name)
            assert isinstance(what, ast.Name)
            if what.id in ("news", "about"):
                continue  # chosen just before
            entry = getattr(news, what.id)
            assert (entry.kind, entry.by) == (KINDS[resource.id], path.partition("/")[0]), path
            told.add(what.id)
    assert len(told) >= 11


def test_no_event_is_listed_that_nobody_tells() -> None:
    names = {name for name, value in vars(news).items() if isinstance(value, news.News | news.Echo)}
    assert len(names) == len(news.NEWS)
    assert all(getattr(news, name) in news.NEWS for name in names)
    used = {
        alias.name
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom) and node.module == "cloudprovider.core.news"
        for alias in node.names
    }
    assert names <= used


def _calls() -> Iterator[tuple[str, ast.Call]]:
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                yield str(path.relative_to(PACKAGE)), node
