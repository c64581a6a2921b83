"""In a real browser, on a real API server: creating, editing and deleting a load balancer, with every rule shown."""

import asyncio
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import yaml
from playwright.async_api import Page, Route, expect

from tests.console import scene
from tests.console.conftest import Site, sign_in
from tests.lab.client import Object
from tests.lab.controlplane import ControlPlane
from tests.lab.process import LabError, wait_for

pytestmark = [pytest.mark.apiserver, pytest.mark.timeout(120), pytest.mark.asyncio(loop_scope="module")]

LBS = f"{scene.GROUP}/namespaces/shops/loadbalancers"
POLICIES = "/apis/admissionregistration.k8s.io/v1"


def holds(stored: object, sent: object) -> bool:
    """Whether all that was sent is stored; the API server adds defaults."""
    if isinstance(stored, dict) and isinstance(sent, dict):
        return all(name in stored and holds(stored[name], value) for name, value in sent.items())
    if isinstance(stored, list) and isinstance(sent, list):
        return len(stored) == len(sent) and all(map(holds, stored, sent))
    return stored == sent


async def tab(page: Page, name: str) -> None:
    await page.get_by_role("tab", name=name).click()


async def test_one_is_created_as_its_yaml_says(page: Page, site: Site, operator: str, plane: ControlPlane) -> None:
    await sign_in(page, site, operator, "/loadbalancers?namespace=shops")
    await page.get_by_role("link", name="Create").click()
    await expect(page.get_by_label("Namespace")).to_have_value("shops")
    await expect(page.get_by_label("Name", exact=True).first).to_be_focused()
    await page.get_by_label("Name", exact=True).first.fill("made")
    await page.get_by_label("Description").fill("Made by hand")
    await page.get_by_label("Pool", exact=True).fill("vlan8")
    await tab(page, "Listeners")
    await page.get_by_label("Port", exact=True).first.fill("80")
    await page.get_by_label("Backend port", exact=True).fill("8080")
    await page.get_by_role("button", name="Add listener").click()
    await expect(page.get_by_label("Port", exact=True).nth(1)).to_be_focused()
    await page.get_by_label("Port", exact=True).nth(1).fill("53")
    await page.get_by_label("Protocol").nth(1).select_option("UDP")
    await page.get_by_label("Backend port", exact=True).nth(1).fill("5353")
    await tab(page, "Backend Server Selector")
    await page.get_by_label("Label", exact=True).fill("app")
    await page.get_by_label("Values", exact=True).fill("web")
    await expect(page.locator("#matches")).to_contain_text("3 virtual machines match")
    await expect(page.locator("#matches")).to_contain_text("10.0.8.21")
    await tab(page, "Health Check")
    await page.get_by_label("Check the backends").check()
    await page.get_by_label("Kind").select_option("HTTP")
    await page.get_by_label("Port", exact=True).last.fill("8080")
    await page.get_by_label("Path").fill("/healthz")
    await expect(page.locator("#preview")).to_contain_text("path: /healthz")
    await expect(page.locator("#check-summary")).to_have_text("")
    shown = yaml.safe_load(await page.locator("#preview").inner_text())
    await page.get_by_role("button", name="Create", exact=True).click()
    await page.wait_for_url(f"{site.url}/loadbalancers/shops/made")
    await expect(page.get_by_role("heading", name="made", exact=True)).to_be_visible()
    made = plane.api.get(f"{LBS}/made")
    assert holds(made["spec"], shown["spec"])
    assert made["metadata"]["name"] == shown["metadata"]["name"] == "made"
    plane.api.delete(f"{LBS}/made")


async def test_rules_are_told_beside_their_fields_before_anything_is_saved(
    page: Page, site: Site, operator: str
) -> None:
    await sign_in(page, site, operator, "/loadbalancers/new?namespace=shops")
    name = page.get_by_label("Name", exact=True).first
    await name.fill("Not A Name")
    await expect(page.locator("#problem-name")).to_contain_text("lower-case letters")
    await expect(name).to_have_attribute("aria-invalid", "true")
    await expect(page.get_by_role("tab", name="Basic")).to_contain_text("1")
    await name.fill("web")
    await expect(page.locator("#problem-name")).to_be_empty()
    await expect(name).not_to_have_attribute("aria-invalid", "true")
    await page.get_by_text("DHCP", exact=False).first.click()
    await page.get_by_label("Pool", exact=True).fill("vlan8")
    await expect(page.locator("#problem-ipPool")).to_contain_text('not the pool "vlan8"')
    await page.get_by_label("Pool", exact=True).fill("")
    await expect(page.locator("#problem-ipPool")).to_be_empty()

    await tab(page, "Listeners")
    await page.get_by_role("button", name="Add listener").click()
    await expect(page.get_by_label("Port", exact=True)).to_have_count(3)
    for i in range(2):
        await page.get_by_label("Port", exact=True).nth(i).fill("80")
        await page.get_by_label("Backend port", exact=True).nth(i).fill("8080")
    await expect(page.locator("#problem-listeners-1-port")).to_contain_text("TCP 80 is used more than once")
    await page.get_by_label("Port", exact=True).nth(1).fill("70000")
    await expect(page.locator("#problem-listeners-1-port")).to_contain_text("from 1 to 65535")
    await page.get_by_label("Remove listener 1").click()
    await expect(page.get_by_label("Port", exact=True).first).to_have_value("70000")
    await page.get_by_label("Port", exact=True).first.fill("443")

    await tab(page, "Health Check")
    await page.get_by_label("Check the backends").check()
    await page.get_by_label("Port", exact=True).last.fill("9")
    await expect(page.locator("#problem-healthCheck-port")).to_contain_text("no TCP listener's backendPort")
    await page.get_by_label("Port", exact=True).last.fill("8080")
    # What only the API server knows: there is one of this name.
    await expect(page.locator("#problem-name")).to_contain_text("there is one of this name already")
    await tab(page, "Basic")
    await page.get_by_label("Name", exact=True).first.fill("fresh")
    await expect(page.locator("#check-summary")).to_have_text("")


async def test_what_has_no_pool_yet_is_cautioned_of_and_can_be_saved(page: Page, site: Site, operator: str) -> None:
    await sign_in(page, site, operator, "/loadbalancers/new?namespace=nowhere")
    await page.get_by_label("Name", exact=True).first.fill("x")
    await tab(page, "Listeners")
    await page.get_by_label("Port", exact=True).first.fill("80")
    await page.get_by_label("Backend port", exact=True).fill("80")
    await tab(page, "Basic")
    await expect(page.locator("#caution-ipPool")).to_contain_text("no address yet: no pool matches the request")
    # The namespace is not there: only the API server says so.
    await expect(page.locator("#problem-")).to_contain_text('namespaces "nowhere" not found')


@contextmanager
def policy(plane: ControlPlane, word: str, action: str) -> Iterator[None]:
    """A rule of the cluster's own against a description, which no program of ours knows."""
    name = f"no-{word}"
    rules: Object = {
        "metadata": {"name": name},
        "spec": {
            "matchConstraints": {
                "resourceRules": [
                    {
                        "apiGroups": ["loadbalancer.harvesterhci.io"],
                        "apiVersions": ["v1beta1"],
                        "operations": ["CREATE", "UPDATE"],
                        "resources": ["loadbalancers"],
                    }
                ]
            },
            "validations": [
                {
                    "expression": f"!has(object.spec.description) || object.spec.description != '{word}'",
                    "message": f"nothing is {word} here",
                }
            ],
        },
    }
    plane.api.create(f"{POLICIES}/validatingadmissionpolicies", rules)
    binding = {"metadata": {"name": name}, "spec": {"policyName": name, "validationActions": [action]}}
    plane.api.create(f"{POLICIES}/validatingadmissionpolicybindings", binding)

    def active() -> bool:
        patch = json.dumps({"spec": {"description": word}})
        asked = ("patch", "lb", "web", "--namespace=shops", "--type=merge", f"--patch={patch}")
        try:
            plane.kubectl(*asked, "--dry-run=server", "--warnings-as-errors")
        except LabError as error:
            return f"nothing is {word}" in str(error)
        return False

    try:
        wait_for("the policy to be in force", active, timeout=30)
        yield
    finally:
        plane.api.delete(f"{POLICIES}/validatingadmissionpolicybindings/{name}")
        plane.api.delete(f"{POLICIES}/validatingadmissionpolicies/{name}")


async def test_a_rule_of_the_clusters_own_is_told_while_typing(
    page: Page, site: Site, operator: str, plane: ControlPlane
) -> None:
    with policy(plane, "secret", "Deny"):
        await sign_in(page, site, operator, "/loadbalancers/shops/web/edit")
        await page.get_by_label("Description").fill("secret")
        await expect(page.locator("#problem-")).to_contain_text("nothing is secret here")
        await page.get_by_role("button", name="Save", exact=True).click()
        await expect(page.locator("#problem-")).to_contain_text("nothing is secret here")
        await expect(page.get_by_label("Description")).to_have_value("secret")


async def test_what_the_api_server_warns_of_is_told_while_typing_and_once_more_after_saving(
    page: Page, site: Site, operator: str, plane: ControlPlane
) -> None:
    scene.load_balancer(plane, "shops", "warned")
    with policy(plane, "odd", "Warn"):
        await sign_in(page, site, operator, "/loadbalancers/shops/warned/edit")
        await page.get_by_label("Description").fill("odd")
        await expect(page.locator("#caution-ipPool")).to_contain_text("nothing is odd here")
        await expect(page.locator("#problem-")).to_be_empty()
        await page.get_by_role("button", name="Save", exact=True).click()
        await page.wait_for_url(f"{site.url}/loadbalancers/shops/warned")
        warning = page.get_by_text("The API server warns: ")
        await expect(warning).to_contain_text("nothing is odd here")
        await page.reload()
        await expect(page.get_by_role("heading", name="warned", exact=True)).to_be_visible()
        await expect(warning).to_have_count(0)
        # A warning of ours is beside its field, be it by the rules in process or by the webhook.
        await page.goto(f"{site.url}/loadbalancers/shops/warned/edit")
        await tab(page, "Health Check")
        await page.get_by_label("Check the backends").check()
        await page.get_by_label("Port", exact=True).last.fill("8080")
        await page.get_by_label("Timeout, seconds").fill("9")
        await expect(page.locator("#caution-healthCheck-timeoutSeconds")).to_contain_text("longer than periodSeconds")
    plane.api.delete(f"{LBS}/warned")


async def test_an_edit_keeps_what_the_form_does_not_know(
    page: Page, site: Site, operator: str, plane: ControlPlane
) -> None:
    spec = {
        "mode": "nat",
        "sourceRanges": ["10.0.0.0/8"],
        "drainSeconds": 7,
        "healthCheck": {"port": 8080, "timeoutSeconds": 2},
    }
    metadata = {"annotations": {"mine": "kept"}, "labels": {"also": "kept"}}
    before = scene.load_balancer(plane, "shops", "edited", spec, metadata=metadata)
    await sign_in(page, site, operator, "/loadbalancers/shops/edited/edit")
    await expect(page.get_by_label("Name", exact=True).first).to_have_attribute("readonly", "")
    await page.get_by_label("Description").fill("changed")
    await expect(page.locator("#preview")).to_contain_text("description: changed")
    shown = yaml.safe_load(await page.locator("#preview").inner_text())
    assert shown["spec"] == {"description": "changed"}
    assert shown["metadata"] == {"resourceVersion": before["metadata"]["resourceVersion"]}
    await page.get_by_role("button", name="Save", exact=True).click()
    await page.wait_for_url(f"{site.url}/loadbalancers/shops/edited")
    after = plane.api.get(f"{LBS}/edited")
    assert after["spec"] == {**before["spec"], "description": "changed"}
    assert after["metadata"]["annotations"] == {"mine": "kept"}
    assert after["metadata"]["labels"] == {"also": "kept"}
    plane.api.delete(f"{LBS}/edited")


async def test_two_who_edit_at_once_are_told_what_changed(
    page: Page, site: Site, operator: str, plane: ControlPlane
) -> None:
    scene.load_balancer(plane, "shops", "shared", {"description": "first"})
    await sign_in(page, site, operator, "/loadbalancers/shops/shared/edit")
    await page.get_by_label("Description").fill("mine")
    status = {"conditions": [scene.condition("Ready", "False", "NoBackends")]}
    plane.api.patch(f"{LBS}/shared/status", {"status": status})
    theirs = {"spec": {"description": "theirs", "ipPool": "vlan8", "listeners": [{"port": 99, "backendPort": 99}]}}
    plane.api.patch(f"{LBS}/shared", theirs)
    await page.get_by_role("button", name="Save", exact=True).click()
    told = page.get_by_role("alert")
    await expect(told).to_contain_text("Somebody else has changed it meanwhile")
    await expect(told).to_contain_text("description: was first, is now theirs")
    await expect(told).to_contain_text("pool: was none, is now vlan8")
    await expect(page.get_by_label("Description")).to_have_value("mine")
    await expect(page.get_by_label("Pool", exact=True)).to_have_value("vlan8")
    assert plane.api.get(f"{LBS}/shared")["spec"]["description"] == "theirs", "nothing is overwritten unseen"
    await page.get_by_role("button", name="Save", exact=True).click()
    await page.wait_for_url(f"{site.url}/loadbalancers/shops/shared")
    spec = plane.api.get(f"{LBS}/shared")["spec"]
    assert (spec["description"], spec["ipPool"], spec["listeners"][0]["port"]) == ("mine", "vlan8", 99)
    plane.api.delete(f"{LBS}/shared")


async def test_a_status_that_changes_meanwhile_is_no_conflict(
    page: Page, site: Site, operator: str, plane: ControlPlane
) -> None:
    scene.load_balancer(plane, "shops", "busy")
    await sign_in(page, site, operator, "/loadbalancers/shops/busy/edit")
    await page.get_by_label("Description").fill("mine")
    status = {"conditions": [scene.condition("Ready", "False", "NoBackends")]}
    plane.api.patch(f"{LBS}/busy/status", {"status": status})
    await page.get_by_role("button", name="Save", exact=True).click()
    await page.wait_for_url(f"{site.url}/loadbalancers/shops/busy")
    assert plane.api.get(f"{LBS}/busy")["spec"]["description"] == "mine"
    plane.api.delete(f"{LBS}/busy")


async def test_one_made_anew_under_the_same_name_is_neither_edited_nor_deleted(
    page: Page, site: Site, operator: str, plane: ControlPlane
) -> None:
    scene.load_balancer(plane, "shops", "anew")
    await sign_in(page, site, operator, "/loadbalancers/shops/anew/edit")
    plane.api.delete(f"{LBS}/anew")
    scene.load_balancer(plane, "shops", "anew")
    await page.get_by_label("Description").fill("for the old one")
    await page.get_by_role("button", name="Save", exact=True).click()
    await expect(page.get_by_role("alert")).to_contain_text("another of the same name")

    await page.goto(f"{site.url}/loadbalancers/shops/anew/delete")
    plane.api.delete(f"{LBS}/anew")
    scene.load_balancer(plane, "shops", "anew")
    await page.get_by_role("button", name="Delete").click()
    await expect(page.get_by_role("heading", name="Changed meanwhile")).to_be_visible()
    plane.api.get(f"{LBS}/anew")
    plane.api.delete(f"{LBS}/anew")


async def test_deleting_asks_first(page: Page, site: Site, operator: str, plane: ControlPlane) -> None:
    scene.load_balancer(plane, "shops", "doomed", status=scene.up("10.0.8.199", "vlan8"))
    await sign_in(page, site, operator, "/loadbalancers/shops/doomed")
    await page.get_by_role("link", name="Delete").click()
    await expect(page.get_by_text("10.0.8.199")).to_be_visible()
    await page.get_by_role("link", name="Keep it").click()
    assert plane.api.find(f"{LBS}/doomed") is not None
    await page.get_by_role("link", name="Delete").click()
    await page.get_by_role("button", name="Delete").click()
    await page.wait_for_url(f"{site.url}/loadbalancers")
    await expect(page.get_by_role("row", name=re.compile("^doomed"))).to_have_count(0)
    assert plane.api.find(f"{LBS}/doomed") is None


async def test_with_100_listeners_the_form_still_answers(
    page: Page, site: Site, operator: str, plane: ControlPlane
) -> None:
    listeners = [{"port": i, "protocol": "TCP", "backendPort": i} for i in range(1, 101)]
    scene.load_balancer(plane, "shops", "many", {"listeners": listeners})
    await sign_in(page, site, operator, "/loadbalancers/shops/many/edit")
    await tab(page, "Listeners")
    await page.get_by_label("Port", exact=True).nth(99).fill("7")
    await expect(page.locator("#problem-listeners-99-port")).to_contain_text("TCP 7 is used more than once")
    await page.get_by_label("Port", exact=True).nth(99).fill("200")
    await expect(page.locator("#problem-listeners-99-port")).to_be_empty()
    await page.get_by_role("button", name="Save", exact=True).click()
    await page.wait_for_url(f"{site.url}/loadbalancers/shops/many")
    assert plane.api.get(f"{LBS}/many")["spec"]["listeners"][99]["port"] == 200
    plane.api.delete(f"{LBS}/many")


async def test_a_form_on_its_way_is_neither_changed_nor_sent_twice(page: Page, site: Site, operator: str) -> None:
    await sign_in(page, site, operator, "/loadbalancers/new?namespace=shops")
    arrived, released = asyncio.Event(), asyncio.Event()

    async def hold(route: Route) -> None:
        arrived.set()
        await released.wait()
        await route.continue_()

    await page.route("**/loadbalancers/new*", hold)
    await tab(page, "Listeners")
    await page.get_by_role("button", name="Add listener").click()
    async with asyncio.timeout(15):
        await arrived.wait()
    await expect(page.locator("#editor")).to_have_js_property("inert", value=True)
    released.set()
    await expect(page.get_by_label("Port", exact=True)).to_have_count(3)
    await expect(page.locator("#editor")).to_have_js_property("inert", value=False)
