"""What the API server says of fields that it does not know."""

from cloudprovider.kube.undeclared import undeclared, without

REFUSED = (
    "failed to create typed patch object (t/a; loadbalancer.harvesterhci.io/v1beta1, Kind=LoadBalancer): "
    ".status.owner: field not declared in schema"
)
TWO = (
    "failed to create typed patch object (t/a; x/v1, Kind=Y): errors:\n  .status.owner: field not declared in schema\n"
    "  .spec.more.less: field not declared in schema"
)


def test_the_fields_are_read_from_the_refusal() -> None:
    assert undeclared(REFUSED) == {("status", "owner")}
    assert undeclared(TWO) == {("status", "owner"), ("spec", "more", "less")}


def test_what_is_about_something_else_is_left_alone() -> None:
    for message in ("", "conflict", '.status.conditions[type="x"].extra: field not declared in schema'):
        assert undeclared(message) == frozenset()


def test_only_those_fields_are_left_out() -> None:
    body = {"status": {"owner": "h1", "address": "a"}, "spec": {"more": {"less": 1, "kept": 2}}, "metadata": {}}
    left = without(body, undeclared(TWO))
    assert left == {"status": {"address": "a"}, "spec": {"more": {"kept": 2}}, "metadata": {}}
    assert body["status"] == {"owner": "h1", "address": "a"}
    assert without(body, [("none", "such"), ("metadata", "name")]) == body
