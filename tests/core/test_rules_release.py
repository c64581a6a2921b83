"""``manuallyReleaseIP``: read, and refused where somebody still has the address."""

from ipaddress import ip_address

import pytest

from cloudprovider.core.errors import InvalidRequest
from cloudprovider.core.rules.holdings import Holding
from cloudprovider.core.rules.release import FIELD, ReleaseOrder, check_release, parse_release

ORDER = ReleaseOrder(ip_address("10.0.0.5"), "team", "web")


@pytest.mark.parametrize("text", ["10.0.0.5: team/web", "10.0.0.5:team/web", " 10.0.0.5 : team/web "])
def test_it_is_read(text: str) -> None:
    assert parse_release(text) == ORDER
    assert ORDER.owner == "team/web"


def test_an_ipv6_address_is_read() -> None:
    assert parse_release("fd00::5: team/web") == ReleaseOrder(ip_address("fd00::5"), "team", "web")


@pytest.mark.parametrize(
    "text",
    ["10.0.0.5", "team/web", "10.0.0.5: web", "10.0.0.5: /web", "10.0.0.5: a/b/c", "x: team/web", "fd00::1%e: a/b"],
)
def test_what_is_malformed_is_told(text: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse_release(text)
    (violation,) = caught.value.violations
    assert (violation.field, violation.reason) == (FIELD, "Malformed")
    assert f'"{text}" is not of the form "192.168.1.10: namespace/load-balancer"' == violation.message


def holding(owner: str = "team/web", uid: str = "u", sharers: tuple[str, ...] = ()) -> Holding:
    return Holding(ip_address("10.0.0.5"), owner, uid, "", sharers)


def test_a_dangling_record_may_be_released() -> None:
    verdict = check_release(ORDER, [holding()], exists=False)
    assert (verdict.violations, verdict.warnings) == ((), ())


@pytest.mark.parametrize(
    ("held", "exists", "reason", "message"),
    [
        (holding(), True, "StillExists", "the load balancer team/web still exists: delete it, and 10.0.0.5 comes back"),
        (holding("team/other"), False, "NotTheHolder", "10.0.0.5 is not held by team/web: it is 10.0.0.5 (team/other)"),
        (holding(sharers=("team/b",)), False, "Shared", "still in use: 10.0.0.5 (team/web, shared with team/b)"),
    ],
)
def test_what_somebody_has_is_not_released(held: Holding, exists: bool, reason: str, message: str) -> None:
    (violation,) = check_release(ORDER, [held], exists=exists).violations
    assert (violation.field, violation.reason) == (FIELD, reason)
    assert message in violation.message


def test_a_hosts_own_address_is_no_load_balancers() -> None:
    order = ReleaseOrder(ORDER.address, "agent", "host-1")
    (violation,) = check_release(order, [holding("agent/host-1", uid="")], exists=False).violations
    assert "it is 10.0.0.5 (the host host-1)" in violation.message
    assert not check_release(order, [holding("agent/host-1", uid="u")], exists=False).violations


def test_nothing_to_release_is_a_warning() -> None:
    verdict = check_release(ORDER, [], exists=True)
    assert verdict.violations == ()
    assert verdict.warnings == (f"{FIELD}: nobody holds 10.0.0.5 in this pool: there is nothing to release",)
