"""The control plane: real, restartable, and usable under accounts with few rights."""

from pathlib import Path

import pytest

from tests.lab.client import Api, ApiError
from tests.lab.controlplane import ControlPlane, Settings
from tests.lab.process import wait_for

pytestmark = pytest.mark.apiserver

NAMESPACES = "/api/v1/namespaces"


def test_objects_outlive_a_crash_of_the_api_server_and_of_etcd(tmp_path: Path) -> None:
    with ControlPlane(tmp_path, tmp_path / "logs") as plane:
        plane.api.create(NAMESPACES, {"metadata": {"name": "kept"}})
        plane.kill_component("kube-apiserver")
        with pytest.raises(OSError, match="refused"):
            plane.api.get(f"{NAMESPACES}/kept")
        plane.kill_component("etcd")
        plane.start()
        assert plane.api.get(f"{NAMESPACES}/kept")["status"]["phase"] == "Active"


def test_the_server_tells_the_version_that_was_built(control_plane: ControlPlane) -> None:
    assert control_plane.api.get("/version")["gitVersion"] == "v1.37.2"


def test_an_account_may_do_only_what_its_roles_say(control_plane: ControlPlane) -> None:
    api = control_plane.api
    api.create(NAMESPACES, {"metadata": {"name": "least"}})
    api.create(f"{NAMESPACES}/least/serviceaccounts", {"metadata": {"name": "reader"}})
    rbac = "/apis/rbac.authorization.k8s.io/v1/namespaces/least"
    api.create(
        f"{rbac}/roles",
        {"metadata": {"name": "reader"}, "rules": [{"apiGroups": [""], "resources": ["pods"], "verbs": ["list"]}]},
    )
    api.create(
        f"{rbac}/rolebindings",
        {
            "metadata": {"name": "reader"},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "reader"},
            "subjects": [{"kind": "ServiceAccount", "name": "reader", "namespace": "least"}],
        },
    )
    kubeconfig = control_plane.kubeconfig_for_account("least", "reader")
    wait_for("roles to be known", lambda: can(control_plane, kubeconfig, "list", "pods"), timeout=10)
    assert not can(control_plane, kubeconfig, "delete", "pods")
    assert not can(control_plane, kubeconfig, "list", "secrets")


def can(plane: ControlPlane, kubeconfig: Path, verb: str, resource: str) -> bool:
    told = plane.kubectl(f"--kubeconfig={kubeconfig}", "auth", "whoami", "-o", "jsonpath={.status.userInfo.username}")
    assert told == "system:serviceaccount:least:reader"
    review = {
        "spec": {
            "user": told,
            "groups": ["system:serviceaccounts"],
            "resourceAttributes": {"namespace": "least", "verb": verb, "resource": resource},
        }
    }
    path = "/apis/authorization.k8s.io/v1/subjectaccessreviews"
    return bool(plane.api.create(path, review)["status"]["allowed"])


def test_a_stranger_is_refused(control_plane: ControlPlane) -> None:
    stranger = Api(control_plane.url, control_plane.ca)
    with pytest.raises(ApiError, match="403"):
        stranger.get(f"{NAMESPACES}/default")
    stranger.close()


def test_the_controller_manager_makes_pods_of_a_deployment(tmp_path: Path) -> None:
    settings = Settings(name="managed", controller_manager=True)
    with ControlPlane(tmp_path, tmp_path / "logs", settings) as plane:
        labels = {"app": "web"}
        plane.api.create(
            "/apis/apps/v1/namespaces/default/deployments",
            {
                "metadata": {"name": "web"},
                "spec": {
                    "replicas": 2,
                    "selector": {"matchLabels": labels},
                    "template": {
                        "metadata": {"labels": labels},
                        "spec": {"containers": [{"name": "web", "image": "web"}]},
                    },
                },
            },
        )
        wait_for("two pods", lambda: len(plane.api.items(f"{NAMESPACES}/default/pods")) == 2)
