"""A real API server, the console, and a real browser."""

import random
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import pytest
import pytest_asyncio
from playwright.async_api import Browser, BrowserContext, Page, async_playwright

from cloudprovider.console.config import ConsoleConfig
from cloudprovider.console.server import Console, listening
from cloudprovider.console.users import connector
from cloudprovider.kube.metrics import RequestCounter
from cloudprovider.kube.registry import Registry
from tests.conftest import DEFINITIONS, KUBEVIRT, LOGS
from tests.console import scene
from tests.lab.controlplane import ControlPlane, Settings

CHROMIUM: Final = "/usr/bin/chromium"
LIMIT_MILLISECONDS: Final = 15000
"""For the browser to see what it waits for: two cores, and others at work."""


@pytest.fixture(scope="package")
def plane() -> Iterator[ControlPlane]:
    """A control plane whose pools and load balancers are the scene's alone."""
    with tempfile.TemporaryDirectory(prefix="console-plane-") as folder:
        plane = ControlPlane(Path(folder), LOGS / "tests", Settings(name="console"))
        with plane:
            plane.apply_definitions(DEFINITIONS)
            plane.apply_definitions(KUBEVIRT)
            plane.kubectl("wait", "--for=condition=Established", "--timeout=30s", "crd", "--all")
            scene.furnish(plane)
            yield plane


@pytest.fixture(scope="package")
def operator(plane: ControlPlane) -> str:
    """The token of somebody who may do everything with load balancers and pools."""
    return scene.user(plane, "operator", scene.EVERYTHING)


@dataclass(frozen=True)
class Site:
    """A console that runs."""

    url: str
    console: Console
    requests: RequestCounter


@asynccontextmanager
async def running(plane: ControlPlane, **settings: object) -> AsyncIterator[Site]:
    """The console on a free port of loopback."""
    config = ConsoleConfig(
        api_server=plane.url,
        api_server_ca=plane.ca,
        console_address="127.0.0.1:0",
        **settings,  # type: ignore[arg-type]
    )
    rng, requests = random.Random(1), RequestCounter()
    console = Console(
        config,
        connector(config, rng=rng, requests=requests),
        now=lambda: datetime.now(UTC),
        time=time.monotonic,
        rng=rng,
        registry=Registry("console", "0"),
    )
    async with listening(config, console, None) as port:
        yield Site(f"http://127.0.0.1:{port}", console, requests)


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def site(plane: ControlPlane) -> AsyncIterator[Site]:
    async with running(plane) as site:
        yield site


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def browser() -> AsyncIterator[Browser]:
    """Debian's Chromium. Without its own sandbox, which refuses root; it only ever sees our pages, inside of the lab's
    sandbox, which has no way out."""
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        )
        yield browser
        await browser.close()


@pytest_asyncio.fixture(loop_scope="module")
async def page(browser: Browser) -> AsyncIterator[Page]:
    """A page of a browser without history; it must not have met an error of a script, or of the policy."""
    async with opened(browser) as page:
        yield page


@asynccontextmanager
async def opened(browser: Browser) -> AsyncIterator[Page]:
    context: BrowserContext = await browser.new_context(viewport={"width": 1280, "height": 900})
    context.set_default_timeout(LIMIT_MILLISECONDS)
    page = await context.new_page()
    wrong: list[str] = []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("console", lambda message: wrong.append(message.text) if _is_wrong(message.type, message.text) else None)
    yield page
    await context.close()
    assert wrong == []


def _is_wrong(kind: str, text: str) -> bool:
    # A page that is refused (403, 422) is an "error" to the browser's console, and often what a test wants to see.
    return kind == "error" and "Failed to load resource" not in text


SignIn = Callable[[Page, str, str], object]


async def sign_in(page: Page, site: Site, token: str, path: str = "/loadbalancers") -> None:
    """Sign in as somebody would, and go to ``path``."""
    await page.goto(f"{site.url}{path}")
    await page.get_by_label("Token").fill(token)
    await page.get_by_role("button", name="Sign in").click()
    await page.wait_for_url(f"{site.url}{path}")
