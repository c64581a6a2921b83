"""What the roles allow is what ``kubectl lb check`` asks for."""

from pathlib import Path

import pytest
import yaml

from cloudprovider.core.permissions import OF_PROGRAMS, SYSTEM, Permission, program_of

MANIFESTS = Path(__file__).parents[2] / "manifests"
ROLES = {
    "cloudprovider-host": MANIFESTS / "host" / "controller-rbac.yaml",
    "cloudprovider-agent": MANIFESTS / "host" / "agent-rbac.yaml",
    "cloudprovider-guest": MANIFESTS / "guest" / "rbac.yaml",
}


@pytest.mark.parametrize("program", ROLES)
def test_the_roles_are_what_the_programs_need(program: str) -> None:
    granted = {
        Permission(verb, group, resource, SYSTEM if document["kind"] == "Role" else "", name)
        for document in yaml.safe_load_all(ROLES[program].read_text())
        for rule in document.get("rules", ())
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
        for name in rule.get("resourceNames", [""])
    }
    assert granted == set(OF_PROGRAMS[program])


def test_only_our_own_accounts_are_programs() -> None:
    assert program_of("system:serviceaccount:cloudprovider-system:cloudprovider-guest") == "cloudprovider-guest"
    assert program_of("system:serviceaccount:other:cloudprovider-guest") == ""
    assert program_of("cloudprovider-guest") == ""
