"""In a real browser, on a real API server: pools, their maps, and what becomes of their addresses."""

import re

import pytest
import yaml
from playwright.async_api import Page, expect

from tests.console import scene
from tests.console.conftest import Site, sign_in
from tests.lab.controlplane import ControlPlane

pytestmark = [pytest.mark.apiserver, pytest.mark.timeout(120), pytest.mark.asyncio(loop_scope="module")]

POOLS = f"{scene.GROUP}/ippools"


async def test_the_map_says_who_has_what(page: Page, site: Site, operator: str) -> None:
    await sign_in(page, site, operator, "/pools")
    row = page.get_by_role("row", name=re.compile("^vlan8"))
    await expect(row).to_contain_text("9 of 89 (10 %)")
    await page.get_by_role("link", name="vlan8").click()
    cells = page.locator(".map li")
    await expect(cells).to_have_count(100)
    for text in (
        "10.0.8.100: (shops/web)",
        "10.0.8.110: (the host host-1)",
        "10.0.8.120: free",
        "10.0.8.140: 52:54:00:aa:bb:cc has it",
        "10.0.8.155: excluded",
    ):
        await expect(cells.filter(has_text=text)).to_have_count(1)
    holders = page.get_by_role("region", name="Who has what")
    await holders.get_by_role("link", name="shops/web").click()
    await expect(page.get_by_role("heading", name="web", exact=True)).to_be_visible()


async def test_a_big_pool_is_one_page_and_its_parts_are_reached_by_links(page: Page, site: Site, operator: str) -> None:
    await sign_in(page, site, operator, "/pools/campus")
    await expect(page.locator(".map")).to_have_count(2)
    for i in range(2):
        await expect(page.locator(".map").nth(i).locator("li")).to_have_count(256)
    await expect(page.get_by_text("50 of 526")).to_be_visible()
    part = page.get_by_role("link", name=re.compile(r"^10\.20\.41\.0 to 10\.20\.41\.255: "))
    await part.focus()
    await page.keyboard.press("Enter")
    await page.wait_for_url(re.compile("part="))
    await expect(page.locator(".map li")).to_have_count(256)
    await expect(page.locator(".map li").filter(has_text="10.20.41.2: (team-a/lb-41-2)")).to_have_count(1)
    await page.get_by_label("Filter").fill("lb-41-9")
    await page.get_by_role("button", name="Show").click()
    names = await page.get_by_role("region", name="Who has what").get_by_role("rowheader").all_inner_texts()
    assert names
    assert all(n.startswith("10.20.41.") for n in names)


async def test_a_pool_is_created_with_its_rules_told(
    page: Page, site: Site, operator: str, plane: ControlPlane
) -> None:
    await sign_in(page, site, operator, "/pools/new")
    await page.get_by_label("Name", exact=True).fill("made")
    subnet = page.get_by_label("Subnet")
    for typed, told in (("10.9.0.0", "is no subnet"), ("224.0.0.0/24", "can't be handed out")):
        await subnet.fill(typed)
        await expect(page.locator("#problem-ranges-0-subnet")).to_contain_text(told)
    await subnet.fill("10.0.8.0/25")
    await page.get_by_label("First", exact=True).fill("10.0.9.1")
    await expect(page.locator("#problem-ranges-0-rangeStart")).to_contain_text("lies outside")
    await page.get_by_label("First", exact=True).fill("")
    await page.get_by_role("tab", name="Who may use it").click()
    await page.get_by_label("Network").fill("default/vlan8")
    await expect(page.get_by_role("tab", name="Ranges")).to_contain_text("1")
    await expect(page.locator("#problem-ranges")).to_contain_text('is in the pool "vlan8" on this network too')
    await page.get_by_label("Priority").fill("10")
    await expect(page.locator("#problem-priority")).to_contain_text("choose another, or 0 for none")
    await page.get_by_label("Priority").fill("0")
    await page.get_by_role("tab", name="Ranges").click()
    await subnet.fill("10.9.0.0/24")
    await page.get_by_label("Never handed out").fill("10.9.0.5, 10.9.0.8-10.9.0.9")
    await page.get_by_role("tab", name="Reservations").click()
    await page.get_by_role("button", name="Add reservation").click()
    await page.get_by_label("Address", exact=True).fill("10.9.0.5")
    await page.get_by_label("Namespace", exact=True).last.fill("shops")
    await page.get_by_label("Load balancer", exact=True).fill("later")
    await expect(page.locator("#problem-reservations-0-address")).to_contain_text("not in the ranges")
    await page.get_by_label("Address", exact=True).fill("10.9.0.6")
    await expect(page.locator("#check-summary")).to_have_text("")
    await expect(page.locator("#preview")).to_contain_text("address: 10.9.0.6")
    shown = yaml.safe_load(await page.locator("#preview").inner_text())
    await page.get_by_role("button", name="Create", exact=True).click()
    await page.wait_for_url(f"{site.url}/pools/made")
    await expect(page.locator(".map li").filter(has_text="10.9.0.6: reserved for shops/later")).to_have_count(1)
    made = plane.api.get(f"{POOLS}/made")["spec"]
    assert {k: made[k] for k in shown["spec"]} == shown["spec"]

    await page.get_by_role("link", name="Delete").click()
    await page.get_by_role("button", name="Delete").click()
    await page.wait_for_url(f"{site.url}/pools")
    assert plane.api.find(f"{POOLS}/made") is None


async def test_no_address_is_taken_from_under_its_holder(
    page: Page, site: Site, operator: str, plane: ControlPlane
) -> None:
    before = plane.api.get(f"{POOLS}/vlan8")["spec"]
    await sign_in(page, site, operator, "/pools/vlan8/edit")
    await page.get_by_label("First", exact=True).fill("10.0.8.120")
    await expect(page.locator("#problem-ranges")).to_contain_text("10.0.8.100 (shops/web)")
    await page.get_by_role("button", name="Save", exact=True).click()
    await expect(page.locator("#problem-ranges")).to_contain_text("this takes out what is in use")
    assert plane.api.get(f"{POOLS}/vlan8")["spec"] == before
    await page.goto(f"{site.url}/pools/vlan8/delete")
    await expect(page.get_by_role("alert")).to_contain_text("is in use")
    await expect(page.get_by_role("button", name="Delete")).to_have_count(0)


async def test_growing_a_pool_sends_its_ranges_alone(
    page: Page, site: Site, operator: str, plane: ControlPlane
) -> None:
    scene.pool(plane, "grown", {"subnet": "10.8.0.0/24", "rangeEnd": "10.8.0.9"}, selector={"network": "default/grown"})
    await sign_in(page, site, operator, "/pools/grown/edit")
    await page.get_by_label("Last", exact=True).fill("10.8.0.99")
    await expect(page.locator("#preview")).to_contain_text("rangeEnd: 10.8.0.99")
    await page.get_by_role("button", name="Save", exact=True).click()
    await page.wait_for_url(f"{site.url}/pools/grown")
    spec = plane.api.get(f"{POOLS}/grown")["spec"]
    assert spec["ranges"] == [{"subnet": "10.8.0.0/24", "rangeEnd": "10.8.0.99"}]
    assert spec["selector"]["network"] == "default/grown"
    plane.api.delete(f"{POOLS}/grown")


async def test_a_dangling_address_is_released_and_no_other(
    page: Page, site: Site, operator: str, plane: ControlPlane
) -> None:
    await sign_in(page, site, operator, "/pools/vlan8")
    await page.get_by_role("link", name="Release 10.0.8.100").click()
    await expect(page.get_by_role("alert")).to_contain_text("still exists")
    await expect(page.get_by_role("button", name="Release")).to_have_count(0)
    await page.get_by_role("link", name="Keep it").click()
    await page.get_by_role("link", name="Release 10.0.8.130").click()
    await page.get_by_role("button", name="Release").click()
    await page.wait_for_url(f"{site.url}/pools/vlan8")
    await expect(page.get_by_text("It is ordered to take back")).to_contain_text("10.0.8.130: shops/long-gone")
    annotations = plane.api.get(f"{POOLS}/vlan8")["metadata"]["annotations"]
    assert annotations == {"loadbalancer.harvesterhci.io/manuallyReleaseIP": "10.0.8.130: shops/long-gone"}
    plane.api.patch(f"{POOLS}/vlan8", {"metadata": {"annotations": None}})
