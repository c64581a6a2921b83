"""The README's pictures of the console: ``make pictures``. Not collected otherwise, since it changes the tree."""

import pytest
from playwright.async_api import Browser, expect

from tests.conftest import ROOT
from tests.console.conftest import Site, sign_in

pytestmark = [pytest.mark.apiserver, pytest.mark.timeout(120), pytest.mark.asyncio(loop_scope="module")]

FOLDER = ROOT / "docs" / "pictures"
PICTURES = {
    "list": "/loadbalancers",
    "web": "/loadbalancers/shops/web",
    "edit": "/loadbalancers/shops/web/edit",
    "pool": "/pools/vlan8",
}


async def test_pictures(browser: Browser, site: Site, operator: str) -> None:
    FOLDER.mkdir(exist_ok=True)
    page = await browser.new_page(viewport={"width": 1120, "height": 700})
    try:
        await sign_in(page, site, operator)
        for name, path in PICTURES.items():
            await page.goto(f"{site.url}{path}")
            await expect(page.locator("main")).not_to_contain_text("…")
            await page.screenshot(path=FOLDER / f"{name}.png")
    finally:
        await page.close()
