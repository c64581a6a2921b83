"""The console has no rights of its own: everybody sees what their own token may, and nothing of anybody else."""

import asyncio
import re
from collections.abc import Sequence

import pytest
from playwright.async_api import Browser, Page, expect

from tests.console import scene
from tests.console.conftest import Site, opened, sign_in
from tests.lab.client import Object
from tests.lab.controlplane import ControlPlane

pytestmark = [pytest.mark.apiserver, pytest.mark.timeout(120), pytest.mark.asyncio(loop_scope="module")]

GROUP = ["loadbalancer.harvesterhci.io"]
LOOKS: Sequence[Object] = ({"apiGroups": GROUP, "resources": ["loadbalancers"], "verbs": ["get", "list", "watch"]},)


async def text_of(page: Page) -> str:
    return await page.locator("body").inner_text()


async def test_who_may_see_one_namespace_sees_only_that(page: Page, site: Site, plane: ControlPlane) -> None:
    token = scene.user(plane, "shopkeeper", LOOKS, namespace="shops")
    await sign_in(page, site, token)
    await expect(page.get_by_role("alert")).to_contain_text("You may not list load balancers of all namespaces")
    assert "reports" not in await text_of(page)

    await page.get_by_label("Namespace").fill("shops")
    await expect(page.get_by_role("row", name=re.compile("^web "))).to_be_visible()
    found = await text_of(page)
    assert "team-a" not in found
    assert "reports" not in found

    await page.get_by_role("link", name="web", exact=True).click()
    await expect(page.get_by_role("heading", name="web", exact=True)).to_be_visible()
    await expect(page.get_by_role("link", name="Edit")).to_have_count(0)
    await expect(page.get_by_role("link", name="Delete")).to_have_count(0)
    await expect(page.get_by_role("region", name="Events")).to_contain_text("You may not read events")

    hidden = "You may not read GuestCluster objects"
    await page.goto(f"{site.url}/loadbalancers?namespace=shops")
    await expect(page.locator("#hidden")).to_contain_text(hidden)
    guest = page.get_by_role("row", name=re.compile("^shop-default-web"))
    await expect(guest).not_to_contain_text(" of 3")
    await guest.get_by_role("link").first.click()
    await expect(page.get_by_role("region", name="Nodes", exact=True)).to_contain_text(hidden)
    assert "shop-node-1" not in await text_of(page)

    refused = {
        "/loadbalancers/team-a/reports": "You may not do this",
        "/loadbalancers/team-a/reports/edit": "You may not do this",
        "/loadbalancers?namespace=team-a": "cannot list resource",
        "/pools": "You may not list pools",
        "/pools/vlan8": "You may not do this",
        "/live/loadbalancers/team-a/reports/traffic": "You may not do this",
        "/live/loadbalancers/team-a/reports/events": "You may not do this",
    }
    for path, says in refused.items():
        await page.goto(f"{site.url}{path}")
        found = await text_of(page)
        assert says in found, path
        assert "Nobody has given it a network" not in found
        assert "10.0.8." not in found


async def test_a_change_that_the_user_may_not_make_is_refused_in_words(
    page: Page, site: Site, plane: ControlPlane
) -> None:
    token = scene.user(plane, "onlooker", LOOKS)
    await sign_in(page, site, token, "/loadbalancers/shops/ledger/edit")
    await page.get_by_label("Description").fill("mine now")
    await expect(page.locator("#problem-")).to_contain_text("you may not save this")
    await page.get_by_role("button", name="Save", exact=True).click()
    await expect(page.locator("#problem-")).to_contain_text("cannot patch resource")
    await page.goto(f"{site.url}/loadbalancers/shops/ledger/delete")
    await page.get_by_role("button", name="Delete").click()
    await expect(page.get_by_text("You may not do this")).to_be_visible()
    kept = plane.api.get(f"{scene.GROUP}/namespaces/shops/loadbalancers/ledger")
    assert kept["spec"]["description"] == "Nightly bookings"
    await page.goto(f"{site.url}/loadbalancers/new?namespace=shops")
    await page.get_by_label("Pool", exact=True).fill("vlan8")
    await expect(page.get_by_text("You may not list pools: type the name of one")).to_be_visible()


async def test_sessions_do_not_mix_not_even_at_the_same_moment(
    browser: Browser, site: Site, plane: ControlPlane
) -> None:
    """Pages and live pages of two users, many times at once: each has its own and nothing else."""
    tokens = {n: scene.user(plane, f"keeper-of-{n}", LOOKS, namespace=n) for n in ("shops", "team-a")}
    foreign = {"shops": "reports", "team-a": "ledger"}
    own = {"shops": "ledger", "team-a": "reports"}
    async with opened(browser) as one, opened(browser) as other:
        pages = {"shops": one, "team-a": other}
        for name, page in pages.items():
            await sign_in(page, site, tokens[name], f"/loadbalancers?namespace={name}")

        async def look(name: str) -> None:
            page = pages[name]
            for path in (f"/loadbalancers?namespace={name}", f"/loadbalancers?namespace={foreign_of(name)}") * 4:
                await page.goto(f"{site.url}{path}")
                found = await text_of(page)
                assert foreign[name] not in found
                assert (own[name] in found) is path.endswith(f"={name}")

        await asyncio.gather(*(look(name) for name in pages))
        scripts = (
            "fetch('/live/loadbalancers?namespace={}')"
            ".then(async r => new TextDecoder().decode((await r.body.getReader().read()).value))"
        )
        for name, page in pages.items():
            mine, theirs = [await page.evaluate(scripts.format(n)) for n in (name, foreign_of(name))]
            assert own[name] in mine
            assert theirs == "event: over\ndata: refused\n\n"


def foreign_of(name: str) -> str:
    return "team-a" if name == "shops" else "shops"


async def test_rights_taken_away_end_a_live_page(page: Page, site: Site, plane: ControlPlane) -> None:
    token = scene.user(plane, "dismissed", LOOKS, namespace="shops")
    await sign_in(page, site, token, "/loadbalancers?namespace=shops")
    await expect(page.get_by_role("row", name=re.compile("^web "))).to_be_visible()
    plane.api.delete(f"{scene.RBAC}/namespaces/shops/rolebindings/dismissed")

    async def refused() -> bool:
        await page.reload()
        return "cannot list resource" in await text_of(page)

    async with asyncio.timeout(30):  # the API server's authorizer follows by watch
        while not await refused():  # noqa: ASYNC110 - a page, no signal
            await asyncio.sleep(0.1)
    await expect(page.locator("tbody tr")).to_have_count(0)


async def test_who_may_list_but_not_watch_sees_the_list_and_is_told(
    page: Page, site: Site, plane: ControlPlane
) -> None:
    rules: Object = {"apiGroups": GROUP, "resources": ["loadbalancers"], "verbs": ["get", "list"]}
    token = scene.user(plane, "photographer", [rules])
    loads: list[str] = []
    page.on("load", lambda loaded: loads.append(loaded.url))
    await sign_in(page, site, token)
    await expect(page.get_by_text("refuses to tell of changes")).to_be_visible()
    await expect(page.get_by_role("row", name=re.compile("^web "))).to_be_visible()
    await page.goto(f"{site.url}/loadbalancers/shops/web")
    await expect(page.get_by_text("refuses to tell of changes")).to_be_visible()
    assert len(loads) == 3, "the sign-in, the list, the page: nothing is loaded again by itself"


async def test_an_account_that_is_gone_is_signed_out(page: Page, site: Site, plane: ControlPlane) -> None:
    token = scene.user(plane, "gone", LOOKS)
    await sign_in(page, site, token)
    plane.api.delete("/api/v1/namespaces/default/serviceaccounts/gone")

    async def ended() -> bool:
        await page.goto(f"{site.url}/loadbalancers")
        return "does not accept your token" in await text_of(page)

    async with asyncio.timeout(30):  # tokens are cached for some seconds
        while not await ended():  # noqa: ASYNC110 - a page, no signal
            await asyncio.sleep(0.2)
    assert "10.0.8." not in await text_of(page)


async def test_without_a_token_nothing_is_asked_of_the_api_server(page: Page, site: Site) -> None:
    before = site.requests.snapshot()
    for path in ("/", "/loadbalancers", "/pools", "/live/loadbalancers", "/loadbalancers/shops/web", "/sign-in"):
        await page.goto(f"{site.url}{path}")
        await expect(page.get_by_role("heading", name="Sign in")).to_be_visible()
    assert site.requests.snapshot() == before
