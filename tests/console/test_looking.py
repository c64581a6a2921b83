"""In a real browser, on a real API server: signing in, the list, one load balancer, all of it live."""

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiohttp import web
from playwright.async_api import Browser, Page, expect

from tests.conftest import DEFINITIONS, LOGS
from tests.console import scene
from tests.console.conftest import Site, opened, running, sign_in
from tests.lab.controlplane import ControlPlane, Settings

pytestmark = [pytest.mark.apiserver, pytest.mark.timeout(120), pytest.mark.asyncio(loop_scope="module")]

expect.set_options(timeout=15000)


async def test_signing_in_looking_and_signing_out(page: Page, site: Site, operator: str) -> None:
    await page.goto(site.url)
    await page.get_by_label("Token").fill("not.a.token")
    await page.get_by_role("button", name="Sign in").click()
    await expect(page.get_by_role("alert")).to_contain_text("does not know this token")
    await page.get_by_label("Token").fill(f"  {operator}\n")
    await page.get_by_role("button", name="Sign in").click()
    await expect(page.get_by_role("heading", name="Load balancers")).to_be_visible()
    row = page.get_by_role("row", name=re.compile("^web "))
    await expect(row).to_contain_text("shops")
    await expect(row).to_contain_text("10.0.8.100")
    await expect(row).to_contain_text("2 of 3")
    await expect(row).to_contain_text("Degraded")
    guest = page.get_by_role("row", name=re.compile("^shop-default-web"))
    await expect(guest).to_contain_text("shop: default/web")
    await page.get_by_role("button", name="Sign out").click()
    await expect(page.get_by_role("heading", name="Sign in")).to_be_visible()
    await page.goto(f"{site.url}/loadbalancers/shops/web")
    await expect(page.get_by_role("heading", name="Sign in")).to_be_visible()


async def test_filter_and_order_stand_in_the_url(page: Page, site: Site, operator: str) -> None:
    await sign_in(page, site, operator)
    rows = page.locator("tbody tr")
    await page.get_by_label("Filter").fill("dns")
    await expect(rows).to_have_count(1)
    await page.wait_for_url(re.compile(r"[?&]q=dns"))
    await expect(page.get_by_role("status").first).to_contain_text("1 shown by the filter")
    await page.reload()
    await expect(rows).to_have_count(1)
    await page.get_by_label("Filter").fill("")
    await page.get_by_label("State").select_option("pending")
    await expect(page.get_by_role("row", name=re.compile("^reports"))).to_be_visible()
    await expect(page.get_by_role("row", name=re.compile("^web "))).to_have_count(0)
    await page.goto(f"{site.url}/loadbalancers?namespace=shops")
    await page.get_by_role("link", name="Address").click()
    await page.wait_for_url(re.compile("sort=address"))
    first = await rows.first.inner_text()
    await page.get_by_role("link", name="Address").click()
    await page.wait_for_url(re.compile("desc=1"))
    await expect(page.get_by_role("columnheader", name="Address")).to_have_attribute("aria-sort", "descending")
    assert await rows.first.inner_text() != first
    await page.go_back()
    await expect(page.get_by_role("columnheader", name="Address")).to_have_attribute("aria-sort", "ascending")


async def test_the_list_follows_without_a_reload(page: Page, site: Site, operator: str, plane: ControlPlane) -> None:
    scene.namespace(plane, "live")
    await sign_in(page, site, operator, "/loadbalancers?namespace=live")
    await expect(page.get_by_text("There is no load balancer here yet")).to_be_visible()
    await page.evaluate("window.stayed = true")
    scene.load_balancer(plane, "live", "new")
    row = page.get_by_role("row", name=re.compile("^new"))
    await expect(row).to_contain_text("Pending")
    await page.get_by_role("link", name="new", exact=True).focus()
    path = f"{scene.GROUP}/namespaces/live/loadbalancers/new"
    plane.api.patch(f"{path}/status", {"status": scene.up("10.0.8.177", "vlan8", [scene.backend("vm", "10.0.8.9")])})
    await expect(row).to_contain_text("Ready")
    await expect(row).to_contain_text("1 of 1")
    await expect(page.get_by_role("link", name="new", exact=True)).to_be_focused()
    plane.api.delete(path)
    await expect(row).to_have_count(0)
    assert await page.evaluate("window.stayed"), "the page was never loaded anew"


async def test_where_one_stands_is_said_in_words(page: Page, site: Site, operator: str) -> None:
    await sign_in(page, site, operator, "/loadbalancers/shops/web")
    stands = page.get_by_role("region", name="Where it stands")
    for text in ("It has an address", "A host has the address up and forwards", "It takes traffic", "host-1", "2 of 3"):
        await expect(stands).to_contain_text(text)
    sick = page.get_by_role("row", name=re.compile("^web-3"))
    await expect(sick).to_contain_text("Failed")
    await expect(sick).to_contain_text("connection refused (TCP 8080)")
    await expect(sick).to_contain_text(re.compile(r"1\d min"))
    await expect(sick.get_by_role("img")).to_have_attribute("aria-label", re.compile("3 times failed"))
    wanted = page.get_by_role("region", name="What is wanted")
    await expect(wanted).to_contain_text("HTTP 8080 /healthz, every 5 s, timeout 3 s; 1 up, 3 down")
    await expect(page.get_by_role("region", name="Traffic")).to_contain_text("--agent-metrics")


async def test_a_pending_one_says_pool_by_pool_why(page: Page, site: Site, operator: str) -> None:
    await sign_in(page, site, operator, "/loadbalancers/team-a/reports")
    await expect(page.get_by_role("region", name="Where it stands")).to_contain_text("NoPoolMatches")
    why = page.get_by_role("region", name="Why no pool serves it")
    await expect(why.get_by_role("row", name=re.compile("^vlan8"))).to_contain_text("WrongNetwork")
    await expect(why.get_by_role("row", name=re.compile("^campus"))).to_contain_text("OutOfScope")


async def test_a_guests_service_is_only_shown(page: Page, site: Site, operator: str) -> None:
    await sign_in(page, site, operator, "/loadbalancers/shops/shop-default-web-00000000")
    await expect(page.get_by_text("shop: default/web")).to_be_visible()
    await expect(page.get_by_role("link", name="Edit")).to_have_count(0)
    answer = await page.goto(f"{site.url}/loadbalancers/shops/shop-default-web-00000000/edit")
    assert answer is not None
    assert answer.status == 403
    await expect(page.get_by_text("it is changed there")).to_be_visible()


async def test_a_guests_nodes_are_shown_with_their_health_and_followed(
    page: Page, site: Site, operator: str, plane: ControlPlane
) -> None:
    await sign_in(page, site, operator)
    row = page.get_by_role("row", name=re.compile("^shop-default-api"))
    await expect(row).to_contain_text("2 of 3")
    await expect(row).to_contain_text("Degraded")
    await row.get_by_role("link").first.click()
    nodes = page.get_by_role("region", name="Nodes", exact=True)
    sick = nodes.get_by_role("row", name=re.compile("^shop-node-3"))
    await expect(sick).to_contain_text("Left out")
    await expect(sick).to_contain_text("Nothing comes back from the node")
    await expect(sick.get_by_role("img")).to_have_attribute("aria-label", re.compile("2 times failed"))
    await expect(nodes.get_by_role("row", name=re.compile("^shop-node-1"))).to_contain_text("10.0.8.61")
    stands = page.get_by_role("region", name="Where it stands")
    await expect(stands).to_contain_text("2 of 3")
    await expect(stands).not_to_contain_text("virtual machines")
    path = f"{scene.CLUSTERS}/namespaces/shops/guestclusters/shop"
    before = plane.api.get(path)["status"]["nodeHealth"]
    back = [{"name": "shop-node-3", "health": {"healthy": True, "since": scene.ago(seconds=5)}}]
    plane.api.patch(f"{path}/status", {"status": {"nodeHealth": back}})
    await expect(sick).to_contain_text("Healthy")
    await expect(page.get_by_role("region", name="Where it stands")).to_contain_text("3 of 3")
    await page.go_back()
    await expect(row).to_contain_text("3 of 3")
    plane.api.patch(f"{path}/status", {"status": {"nodeHealth": before}})
    await expect(row).to_contain_text("2 of 3")


async def test_one_load_balancer_follows_with_its_events(
    page: Page, site: Site, operator: str, plane: ControlPlane
) -> None:
    scene.namespace(plane, "live-one")
    check = {"healthCheck": {"port": 8080}}
    made = scene.load_balancer(plane, "live-one", "one", check, scene.up("10.0.8.178", "vlan8"))
    event = {
        "metadata": {"name": "one.1", "namespace": "live-one"},
        "involvedObject": {
            "apiVersion": made["apiVersion"],
            "kind": "LoadBalancer",
            "namespace": "live-one",
            "name": "one",
            "uid": made["metadata"]["uid"],
        },
        "reason": "AddressClaimedByOther",
        "message": "52:54:00:aa:bb:cc claims 10.0.8.178",
        "type": "Warning",
        "count": 3,
        "lastTimestamp": scene.ago(minutes=2),
    }
    plane.api.create("/api/v1/namespaces/live-one/events", event)
    await sign_in(page, site, operator, "/loadbalancers/live-one/one")
    events = page.get_by_role("region", name="Events")
    await expect(events).to_contain_text("52:54:00:aa:bb:cc claims 10.0.8.178")
    await expect(events).to_contain_text("2 min, 3 times")
    path = f"{scene.GROUP}/namespaces/live-one/loadbalancers/one"
    status = scene.up("10.0.8.178", "vlan8", [scene.backend("vm-1", "10.0.8.9", healthy=False)])
    plane.api.patch(f"{path}/status", {"status": status})
    await expect(page.get_by_role("row", name=re.compile("^vm-1"))).to_contain_text("Failed")
    status["backends"][0]["health"]["healthy"] = True
    plane.api.patch(f"{path}/status", {"status": status})
    await expect(page.get_by_role("row", name=re.compile("^vm-1"))).to_contain_text("Healthy")
    plane.api.delete(path)
    await expect(page.get_by_role("heading", name="It is gone")).to_be_visible()


@asynccontextmanager
async def metrics() -> AsyncIterator[str]:
    async def handle(request: web.Request) -> web.Response:
        assert request.match_info["node"] == "host-1"
        lines = (
            f'cloudprovider_agent_client_{what}_total{{network="x",load_balancer="shops/web"}} {n}'
            for what, n in (("bytes", 123456.0), ("packets", 789.0))
        )
        return web.Response(text="\n".join(lines) + "\n")

    app = web.Application()
    app.router.add_get("/{node}/metrics", handle)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/{{node}}/metrics"
    finally:
        await runner.cleanup()


async def test_traffic_is_the_agents_word(browser: Browser, plane: ControlPlane, operator: str) -> None:
    async with metrics() as url, running(plane, agent_metrics=url) as site, opened(browser) as page:
        await sign_in(page, site, operator, "/loadbalancers/shops/web")
        traffic = page.get_by_role("region", name="Traffic")
        await expect(traffic).to_contain_text("123 kB")
        await expect(traffic).to_contain_text("789 packets")
        await expect(traffic).to_contain_text("Counted by the agent on host-1")


async def test_an_api_server_that_goes_and_comes_back_is_told_and_followed(browser: Browser, tmp_path: Path) -> None:
    with ControlPlane(tmp_path, LOGS / "tests", Settings(name="console-restart")) as plane:
        plane.apply_definitions(DEFINITIONS)
        scene.namespace(plane, "shops")
        scene.load_balancer(plane, "shops", "web")
        token = scene.user(plane, "operator", scene.EVERYTHING)
        async with running(plane) as site, opened(browser) as page:
            await sign_in(page, site, token)
            row = page.get_by_role("row", name=re.compile("^web "))
            await expect(row).to_contain_text("Pending")
            plane.kill_component("kube-apiserver")
            await expect(page.get_by_text("This may be old")).to_be_visible()
            await expect(row).to_be_visible()
            plane.start_component("kube-apiserver")
            path = f"{scene.GROUP}/namespaces/shops/loadbalancers/web"
            plane.api.patch(f"{path}/status", {"status": scene.up("10.0.8.100", "vlan8")})
            await expect(row).to_contain_text("Ready", timeout=40000)
            await expect(page.get_by_text("This may be old")).to_have_count(0)
