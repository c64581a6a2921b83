"""Scripts in every text field and every field of stored objects: nothing of them runs, all of it can be read."""

from urllib.parse import quote

import pytest
from playwright.async_api import Browser, Page, expect

from tests.console import scene
from tests.console.conftest import Site, sign_in
from tests.lab.controlplane import ControlPlane

pytestmark = [pytest.mark.apiserver, pytest.mark.timeout(120), pytest.mark.asyncio(loop_scope="module")]

SCRIPT = '"\'><script>window.ran=1</script><img src=x onerror="window.ran=2"><svg onload=window.ran=3>{{7*7}}'
HTMX = (
    '<b hx-get=/sign-out hx-trigger=load hx-on:load="window.ran=4">x</b>'
    "<meta http-equiv=refresh content='0;url=//evil'>"
)
EVIL = SCRIPT + HTMX
PATH = "/" + EVIL.replace(" ", "/")
"""As much of a script as a health check's path may hold."""
LINK = "javascript:window.ran=5"


async def assert_nothing_runs(page: Page) -> None:
    """What runs late has had its time: htmx has swapped what it swaps on its own."""
    await page.evaluate("new Promise(r => requestAnimationFrame(() => setTimeout(r, 50)))")
    assert await page.evaluate("window.ran === undefined")
    for selector in (
        "img",
        "b[hx-get]",
        "meta[http-equiv]",
        "svg[onload]",
        "script:not([src])",
        "a[href^='javascript']",
    ):
        assert await page.locator(selector).count() == 0, selector


@pytest.fixture(scope="module")
def evil(plane: ControlPlane) -> None:
    """Objects whose every free text is a script."""
    scene.namespace(plane, "evil")
    server = scene.backend("vm", "10.0.8.77", healthy=False)
    server["health"]["message"] = EVIL
    server["health"]["since"] = EVIL
    server["health"]["history"] = [{"time": EVIL, "healthy": False}, {"time": scene.ago(minutes=5), "healthy": False}]
    odd = {"name": EVIL, "addresses": [EVIL[:39]], "macAddress": EVIL[:17], "reason": EVIL[:64], "message": EVIL}
    status = {
        **scene.up(EVIL, EVIL, [server, odd]),
        "holder": {"node": EVIL, "mode": "nat", "addresses": [EVIL], "generation": 1},
        "foreignAddresses": [{"ip": EVIL, "hardwareAddress": EVIL}],
        "nextAddresses": [{"ip": EVIL, "prefixLength": 24}],
        "lease": {"ip": EVIL, "prefixLength": 24, "server": EVIL, "expiryTime": EVIL},
        "conditions": [
            scene.condition("Ready", "False", EVIL, EVIL),
            scene.condition("Allocated", "True", LINK, LINK),
            scene.condition(EVIL[:300], "True", EVIL, EVIL),
        ],
    }
    spec = {
        "description": EVIL,
        "ipPool": LINK,
        "listeners": [{"name": EVIL[:63], "port": 80, "backendPort": 80}],
        "backendServerSelector": {EVIL: [EVIL, LINK]},
        "sourceRanges": [],
        "healthCheck": {"port": 80, "protocol": "HTTPS", "path": PATH, "certificateAuthority": EVIL},
    }
    network = {
        "annotations": {"loadbalancer.harvesterhci.io/network": EVIL, "loadbalancer.harvesterhci.io/cluster": EVIL}
    }
    made = scene.load_balancer(plane, "evil", "vm", spec, status, metadata=network)
    guest = {"workloadType": "cluster", "service": {"namespace": EVIL[:63], "name": EVIL[:63], "uid": "u"}}
    scene.load_balancer(plane, "evil", "guest", guest, scene.up("10.0.8.1", LINK), metadata=network)
    event = {
        "metadata": {"name": "vm.1", "namespace": "evil"},
        "involvedObject": {"kind": "LoadBalancer", "namespace": "evil", "name": "vm", "uid": made["metadata"]["uid"]},
        "reason": EVIL[:128],
        "message": EVIL,
        "type": "Warning",
        "lastTimestamp": scene.ago(minutes=1),
    }
    plane.api.create("/api/v1/namespaces/evil/events", event)
    scene.pool(
        plane,
        "evil",
        {"subnet": "10.66.0.0/24"},
        description=EVIL,
        selector={
            "network": EVIL[:127],
            "scope": [{"project": EVIL[:127], "namespace": EVIL[:63], "guestCluster": EVIL[:63]}],
        },
        reservations=[{"address": "10.66.0.9", "namespace": EVIL[:63], "loadBalancer": EVIL[:253]}],
    )
    owners = {"10.66.0.2": EVIL, "10.66.0.3": f"evil/{LINK}", "10.66.0.4": "agent/" + EVIL}
    conflicts = {"10.66.0.5": {"hardwareAddress": EVIL[:64], "until": EVIL}}
    scene.block(plane, "evil", "10.66.0.0", owners, conflicts=conflicts)
    condition = scene.condition("Full", "True", EVIL, EVIL)
    plane.api.patch(f"{scene.GROUP}/ippools/evil/status", {"status": {"conditions": [condition]}})
    plane.api.patch(f"{scene.GROUP}/ippools/evil", {"metadata": {"annotations": {scene.RELEASE: EVIL}}})


@pytest.mark.usefixtures("evil")
async def test_what_stands_in_objects_is_text(page: Page, site: Site, operator: str) -> None:
    await sign_in(page, site, operator)
    for path in (
        "/loadbalancers",
        "/loadbalancers?namespace=evil&q=window",
        "/loadbalancers/evil/vm",
        "/loadbalancers/evil/vm/edit",
        "/loadbalancers/evil/vm/delete",
        "/loadbalancers/evil/guest",
        "/pools",
        "/pools/evil",
        "/pools/evil/edit",
        "/pools/evil/delete",
    ):
        await page.goto(f"{site.url}{path}")
        await expect(page.locator("h1")).to_be_visible()
        assert "window.ran" in await page.content(), f"{path} shows none of it"
        await assert_nothing_runs(page)
    await page.goto(f"{site.url}/loadbalancers/evil/vm")
    await expect(page.get_by_role("region", name="Events")).to_contain_text(SCRIPT)
    await expect(page.get_by_role("region", name="Where it stands")).to_contain_text(SCRIPT)
    await expect(page.get_by_role("region", name="Backends", exact=True)).to_contain_text(HTMX)
    await expect(page.get_by_role("region", name="Traffic")).to_contain_text("no")
    await assert_nothing_runs(page)


@pytest.mark.usefixtures("evil")
async def test_what_comes_live_is_text(page: Page, site: Site, operator: str, plane: ControlPlane) -> None:
    await sign_in(page, site, operator, "/loadbalancers/evil/vm")
    path = f"{scene.GROUP}/namespaces/evil/loadbalancers/vm"
    late = scene.condition("Ready", "False", "Late", "late " + EVIL)
    plane.api.patch(f"{path}/status", {"status": {"conditions": [late]}})
    await expect(page.get_by_role("region", name="Where it stands")).to_contain_text("late " + SCRIPT)
    await assert_nothing_runs(page)


@pytest.mark.parametrize(
    "path", ["/loadbalancers/new", "/pools/new", "/loadbalancers/shops/web/edit", "/pools/vlan8/edit"]
)
async def test_what_is_typed_is_text(page: Page, site: Site, operator: str, path: str) -> None:
    await sign_in(page, site, operator, path)
    if "loadbalancers" in path:
        await page.evaluate("document.querySelector('[name=healthCheck]').checked = true")
    # All at once, in all tabs, as the browser's own input events.
    count = await page.evaluate(
        """text => {
            const typed = 'input:not([type=hidden], [type=radio], [type=checkbox], [readonly]), textarea';
            const all = [...document.getElementById('editor').querySelectorAll(typed)];
            for (const each of all) { each.removeAttribute('maxlength'); each.value = text; }
            all[0].dispatchEvent(new Event('input', {bubbles: true}));
            return all.length;
        }""",
        EVIL,
    )
    assert count >= 8
    await expect(page.locator("#check-summary")).to_contain_text("to correct")
    await assert_nothing_runs(page)
    await page.get_by_role("button", name="Create" if path.endswith("new") else "Save", exact=True).click()
    await expect(page.locator("#check-summary")).to_contain_text("to correct")
    await assert_nothing_runs(page)
    kept = await page.evaluate(
        "[...document.querySelectorAll('#editor input')].some(i => i.value.includes('window.ran=1'))"
    )
    assert kept, "what was typed is still there to be corrected"


async def test_a_url_is_text(page: Page, site: Site, operator: str) -> None:
    evil = quote(EVIL, safe="")
    await page.goto(f"{site.url}/sign-in?next={evil}")
    await assert_nothing_runs(page)
    await sign_in(page, site, operator)
    for path in (
        f"/loadbalancers?q={evil}&namespace={evil}&state={evil}&sort={evil}",
        f"/loadbalancers/{evil}/{evil}",
        f"/loadbalancers/new?namespace={evil}",
        f"/pools/{evil}",
        f"/pools/vlan8?part={evil}&q={evil}",
        f"/pools/vlan8/release?address={evil}&owner={evil}",
        f"/{evil}",
    ):
        await page.goto(f"{site.url}{path}")
        await expect(page.locator("h1")).to_be_visible()
        await assert_nothing_runs(page)


async def test_the_policy_stops_what_would_get_through(browser: Browser, site: Site, operator: str) -> None:
    """The second wall: even markup that is no longer escaped could run nothing. (The browser's console tells of it.)"""
    page = await browser.new_page()
    await sign_in(page, site, operator)
    await page.evaluate(
        """text => { document.querySelector('main').innerHTML = text;
            const s = document.createElement('script'); s.textContent = 'window.ran=9'; document.body.append(s); }""",
        '<img src="/static/icon.svg" onload="window.ran=8"><a href="javascript:window.ran=7" id="evil">x</a>',
    )
    await page.locator("#evil").click()
    await page.evaluate("new Promise(r => setTimeout(r, 100))")
    assert await page.evaluate("window.ran === undefined")
    refused = await page.evaluate("fetch('http://127.0.0.1:1/').then(() => 'went', () => 'refused')")
    assert refused == "refused"
    await page.close()
