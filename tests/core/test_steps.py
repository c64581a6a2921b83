"""Which step a condition's reason speaks of."""

from typing import get_args

import pytest

from cloudprovider.core.selection import NoPoolReason
from cloudprovider.core.steps import TITLES, step_of, todo_of
from cloudprovider.core.wants import Refusal


@pytest.mark.parametrize("reason", sorted({*get_args(NoPoolReason), *get_args(Refusal)}))
def test_what_the_host_refuses_belongs_to_a_step_and_says_what_to_do(reason: str) -> None:
    assert step_of(reason, "read") in ("pool", "address", "announced"), "add it to core/steps.py"
    assert todo_of(reason) or reason == "TooManySharers", "its message says it all"


def test_a_reason_that_is_not_known_is_left_to_who_asks() -> None:
    assert step_of("SomethingNew", "accepted") == "accepted"
    assert todo_of("SomethingNew") == ""


def test_every_step_has_a_title() -> None:
    assert all(TITLES.values())
