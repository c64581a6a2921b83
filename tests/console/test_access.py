"""Usable with a keyboard alone, with a screen reader, on a narrow screen, in the dark."""

import pytest
from playwright.async_api import Browser, Page, expect

from tests.console.conftest import Site, sign_in

pytestmark = [pytest.mark.apiserver, pytest.mark.timeout(120), pytest.mark.asyncio(loop_scope="module")]

PAGES = [
    "/loadbalancers",
    "/loadbalancers/new",
    "/loadbalancers/shops/web",
    "/loadbalancers/team-a/reports",
    "/loadbalancers/shops/web/edit",
    "/loadbalancers/shops/web/delete",
    "/pools",
    "/pools/vlan8",
    "/pools/campus",
    "/pools/new",
    "/pools/vlan8/edit",
    "/pools/vlan8/release?address=10.0.8.130&owner=shops/long-gone",
]

NAMELESS = """
() => [...document.querySelectorAll('input:not([type=hidden]), select, textarea, button, a, [role=tab], svg[role=img]')]
    .filter(e => e.offsetParent !== null || e.tagName === 'svg')
    .filter(e => !(e.getAttribute('aria-label') || e.textContent.trim() || e.title
        || [...(e.labels || [])].some(l => l.textContent.trim())))
    .map(e => e.outerHTML.slice(0, 200))
"""
CONTRAST = """
() => {
    const parse = c => {
        const m = c.match(/[\\d.]+/g).map(Number);
        return c.startsWith('color(') ? m.map((x, i) => i < 3 ? x * 255 : x) : m;
    };
    const linear = v => v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4;
    const lum = c => [.2126, .7152, .0722].reduce((sum, part, i) => sum + part * linear(c[i] / 255), 0);
    const ground = e => {
        for (; e; e = e.parentElement) {
            const c = parse(getComputedStyle(e).backgroundColor);
            if (c.length < 4 || c[3] > .9) return c;
        }
        return [255, 255, 255];
    };
    const bad = [];
    for (const e of document.querySelectorAll('main *, header *')) {
        if (!e.offsetParent || ![...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim())) continue;
        if (e.closest('.hidden, .map')) continue;
        const a = lum(parse(getComputedStyle(e).color)), b = lum(ground(e));
        const ratio = (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
        if (ratio < 4.5) bad.push(`${ratio.toFixed(2)} ${e.className} ${e.textContent.trim().slice(0, 40)}`);
    }
    return bad;
}
"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_everything_has_a_name_a_place_and_contrast_and_fits_a_narrow_screen(
    browser: Browser, site: Site, operator: str, scheme: str
) -> None:
    context = await browser.new_context(
        viewport={"width": 400, "height": 800}, color_scheme="dark" if scheme == "dark" else "light"
    )
    page = await context.new_page()
    try:
        await sign_in(page, site, operator)
        for path in PAGES:
            await page.goto(f"{site.url}{path}")
            assert await page.evaluate(NAMELESS) == [], path
            assert await page.evaluate(CONTRAST) == [], path
            width = await page.evaluate("document.documentElement.scrollWidth")
            assert width <= 400, f"{path} is {width} wide"
            for role in ("main", "banner"):
                await expect(page.get_by_role(role)).to_have_count(1)
            assert await page.locator("h1").count() == 1
            assert await page.locator("html").get_attribute("lang") == "en"
            ids = await page.evaluate("[...document.querySelectorAll('[id]')].map(e => e.id)")
            assert len(ids) == len(set(ids)), f"{path}: {sorted(i for i in ids if ids.count(i) > 1)}"
            broken = await page.evaluate(
                "[...document.querySelectorAll('[aria-describedby], [aria-controls], [aria-labelledby]')].flatMap(e =>"
                " ['aria-describedby', 'aria-controls', 'aria-labelledby'].flatMap(n => (e.getAttribute(n) || '')"
                ".split(' ').filter(i => i && !document.getElementById(i))))"
            )
            assert broken == [], path
    finally:
        await context.close()


async def test_the_keyboard_is_enough(page: Page, site: Site, operator: str) -> None:
    await page.goto(f"{site.url}/sign-in")
    await expect(page.get_by_label("Token")).to_be_focused()
    await page.keyboard.insert_text(operator)
    await page.keyboard.press("Enter")
    await expect(page.get_by_role("heading", name="Load balancers")).to_be_visible()
    await page.keyboard.press("Tab")
    skip = page.get_by_role("link", name="Skip to the content")
    await expect(skip).to_be_focused()
    await expect(skip).to_be_in_viewport()
    await page.keyboard.press("Enter")
    await expect(page.locator("main")).to_be_focused()
    await page.keyboard.press("Tab")
    await expect(page.get_by_role("link", name="Create")).to_be_focused()
    await page.keyboard.press("Enter")

    await expect(page.get_by_label("Namespace")).to_be_focused()
    await page.keyboard.press("Shift+Tab")
    tabs = page.get_by_role("tab")
    await expect(tabs.nth(0)).to_be_focused()
    for key, at in (("ArrowRight", 1), ("ArrowRight", 2), ("End", 3), ("ArrowRight", 0), ("ArrowLeft", 3), ("Home", 0)):
        await page.keyboard.press(key)
        await expect(tabs.nth(at)).to_be_focused()
        await expect(tabs.nth(at)).to_have_attribute("aria-selected", "true")
        await expect(page.get_by_role("tabpanel")).to_have_count(1)
    await page.keyboard.press("ArrowRight")
    await page.keyboard.press("Tab")
    await expect(page.get_by_label("Port", exact=True).first).to_be_focused()
    outline = await page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"


async def test_a_form_works_without_scripts(browser: Browser, site: Site, operator: str) -> None:
    context = await browser.new_context(java_script_enabled=False)
    context.set_default_timeout(15000)
    page = await context.new_page()
    try:
        await sign_in(page, site, operator, "/loadbalancers/new?namespace=shops")
        await page.get_by_role("button", name="Add listener").click()
        await expect(page.get_by_label("Port", exact=True)).to_have_count(3)  # two listeners, and the check's
        await page.get_by_role("button", name="Create", exact=True).click()
        await expect(page.locator("#problem-name")).to_contain_text("give it a name")
        await expect(page.locator("#problem-listeners-1-port")).to_contain_text("from 1 to 65535")
    finally:
        await context.close()
