"""Which step a condition's reason speaks of."""

import re
from pathlib import Path
from typing import get_args

import pytest

import cloudprovider
from cloudprovider.core.reasons import NoPoolReason, Refusal
from cloudprovider.core.steps import TITLES, step_of, todo_of


@pytest.mark.parametrize("reason", sorted({*get_args(NoPoolReason), *get_args(Refusal)}))
def test_what_the_host_refuses_belongs_to_a_step_and_says_what_to_do(reason: str) -> None:
    assert step_of(reason, "read") in ("pool", "address", "announced"), "add it to core/reasons.py"
    assert todo_of(reason)


def test_every_reason_in_the_code_belongs_to_a_step() -> None:
    """Whoever adds one says by its group in core/reasons.py where on the way it stops a load balancer."""
    said = re.compile(r'\b(?:Problem|Refusal)\(\s*"([A-Z][A-Za-z]+)"')
    found = {
        word
        for part in ("core", "agent", "host", "dhcp")
        for path in (Path(cloudprovider.__file__).parent / part).rglob("*.py")
        for word in said.findall(path.read_text())
    }
    assert len(found) > 15
    anywhere = {"InvalidSpec"}  # its message names the field
    assert {word for word in found if step_of(word, "read") == "read"} == anywhere


def test_a_reason_that_is_not_known_is_left_to_who_asks() -> None:
    assert step_of("SomethingNew", "accepted") == "accepted"
    assert todo_of("SomethingNew") == ""


def test_every_step_has_a_title() -> None:
    assert all(TITLES.values())
