"""Who comes in: without a session, from another site, with too much; and what every answer carries."""

import random
import re
from collections.abc import AsyncIterator, Mapping
from http.cookies import Morsel

import pytest
from aiohttp.test_utils import TestClient, TestServer
from aiohttp.web import Application, Request

from cloudprovider.console.config import ConsoleConfig
from cloudprovider.console.gate import BODY_LIMIT, local_path
from cloudprovider.console.server import Console
from cloudprovider.core.api.loadbalancer import Listener, LoadBalancer, LoadBalancerSpec
from cloudprovider.core.api.meta import ObjectMeta
from cloudprovider.core.errors import Forbidden, Unavailable
from cloudprovider.kube.fake import FakeCluster
from cloudprovider.kube.fakestore import Call
from cloudprovider.kube.registry import Registry
from cloudprovider.kube.resources import LOADBALANCERS
from tests.console.users import FakeUser, now

Client = TestClient[Request, Application]
PATHS = [
    "/",
    "/loadbalancers",
    "/loadbalancers/new",
    "/loadbalancers/a/b",
    "/loadbalancers/a/b/edit",
    "/loadbalancers/a/b/delete",
    "/live/loadbalancers",
    "/live/loadbalancers/a/b/traffic",
    "/pools",
    "/pools/new",
    "/pools/p",
    "/pools/p/release",
    "/nowhere",
]


@pytest.fixture
def cluster() -> FakeCluster:
    found = FakeCluster(now)
    spec = LoadBalancerSpec(listeners=[Listener(port=80, backend_port=8080)], backend_server_selector={"a": ["b"]})
    found.seed(LOADBALANCERS, LoadBalancer(metadata=ObjectMeta(name="b", namespace="a"), spec=spec))
    return found


def console(cluster: FakeCluster, **settings: str) -> Console:
    config = ConsoleConfig(**settings)  # type: ignore[arg-type]
    return Console(
        config,
        lambda token: FakeUser(cluster, token),
        now=now,
        time=lambda: 0.0,
        rng=random.Random(1),
        registry=Registry("console", "0"),
    )


@pytest.fixture
async def client(cluster: FakeCluster) -> AsyncIterator[Client]:
    async with TestClient(TestServer(console(cluster).app)) as client:
        yield client


def own(client: Client, **more: str) -> Mapping[str, str]:
    return {"Origin": f"http://127.0.0.1:{client.port}", **more}


async def signed_in(client: Client, who: str = "good") -> str:
    """Sign in; return the form token of its pages."""
    answer = await client.post("/sign-in", data={"token": who}, headers=own(client), allow_redirects=False)
    assert answer.status == 303, await answer.text()
    return await form_token(client)


async def form_token(client: Client) -> str:
    page = await (await client.get("/loadbalancers/new")).text()
    found = re.search(r'name="form_token" value="([^"]+)"', page)
    assert found is not None
    return found[1]


@pytest.mark.parametrize("path", PATHS)
async def test_without_a_session_there_is_only_the_sign_in(client: Client, cluster: FakeCluster, path: str) -> None:
    calls: list[Call] = []

    async def note(call: Call) -> None:
        calls.append(call)

    cluster.before = note
    answer = await client.get(path, allow_redirects=False)
    assert (answer.status, answer.headers["Location"].partition("?")[0]) == (303, "/sign-in")
    part = await client.get(path, headers={"HX-Request": "true"}, allow_redirects=False)
    assert (part.status, part.headers["HX-Redirect"]) == (401, "/sign-in")
    assert calls == []


@pytest.mark.parametrize("path", [*PATHS, "/sign-in", "/static/console.css", "/static/nothing"])
async def test_every_answer_forbids_what_is_not_ours_and_is_not_kept(client: Client, path: str) -> None:
    await signed_in(client)
    answer = await client.get(path, allow_redirects=False, headers={"HX-Request": "true"})
    policy = dict(part.strip().split(" ", 1) for part in answer.headers["Content-Security-Policy"].split(";"))
    assert policy == {
        "default-src": "'none'",
        "script-src": "'self'",
        "style-src": "'self'",
        "img-src": "'self'",
        "connect-src": "'self'",
        "form-action": "'self'",
        "frame-ancestors": "'none'",
        "base-uri": "'none'",
    }
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.headers["Referrer-Policy"] == "no-referrer"
    immutable = path == "/static/console.css"
    assert answer.headers["Cache-Control"] == ("public, max-age=31536000, immutable" if immutable else "no-store")
    if answer.content_type == "text/html":
        text = await answer.text()
        assert not re.search(r"<style|\sstyle=|<script(?! src=)|\son\w+=|https?://", text), (
            "nothing inline, nothing of others"
        )
    answer.close()


async def test_the_cookie_is_for_this_site_alone_and_out_of_reach_of_scripts(cluster: FakeCluster) -> None:
    for url, name, secure in (("", "console", ""), ("https://console.example.org", "__Host-console", True)):
        async with TestClient(TestServer(console(cluster, public_url=url).app)) as client:
            origin = url or f"http://127.0.0.1:{client.port}"
            headers = {"Origin": origin}
            answer = await client.post("/sign-in", data={"token": "x"}, headers=headers, allow_redirects=False)
            (cookie,) = answer.cookies.values()
            assert isinstance(cookie, Morsel)
            assert cookie.key == name
            assert (cookie["httponly"], cookie["samesite"], cookie["path"]) == (True, "Strict", "/")
            assert cookie["secure"] == secure
            assert "x" not in {cookie.value, ""}


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({}, 403),
        ({"Origin": "OWN", "Sec-Fetch-Site": "cross-site"}, 403),
        ({"Origin": "OWN", "Sec-Fetch-Site": "same-site"}, 403),
        ({"Origin": "http://evil.example", "Sec-Fetch-Site": "same-origin"}, 403),
        ({"Origin": "OWN", "Sec-Fetch-Site": "same-origin"}, 303),
        ({"Origin": "null", "Sec-Fetch-Site": "same-origin"}, 303),
        ({"Origin": "OWN"}, 303),
    ],
)
async def test_a_change_from_another_site_is_not_made(
    client: Client, cluster: FakeCluster, headers: dict[str, str], status: int
) -> None:
    token = await signed_in(client)
    sent = {k: own(client)["Origin"] if v == "OWN" else v for k, v in headers.items()}
    data = {"form_token": token, "uid": ""}
    answer = await client.post("/loadbalancers/a/b/delete", data=data, headers=sent, allow_redirects=False)
    assert answer.status == status
    assert (len(cluster.snapshot().objects["loadbalancer.harvesterhci.io", "loadbalancers"]) == 0) is (status == 303)


async def test_a_form_without_its_sessions_token_is_not_taken(client: Client, cluster: FakeCluster) -> None:
    await signed_in(client)
    async with TestClient(TestServer(console(cluster).app)) as other:
        foreign = await signed_in(other, "another")
    for given in ("", "x", foreign, foreign + "ä"):
        data = {"form_token": given}
        answer = await client.post("/loadbalancers/a/b/delete", data=data, headers=own(client), allow_redirects=False)
        assert answer.status == 403
    cluster.find(LOADBALANCERS, "a", "b")  # raises if it is gone


async def test_only_forms_and_only_so_large_ones(client: Client) -> None:
    token = await signed_in(client)
    path, body = "/loadbalancers/new", f"form_token={token}&description="
    form = own(client, **{"Content-Type": "application/x-www-form-urlencoded"})
    large = await client.post(path, data=body + "x" * BODY_LIMIT, headers=form)
    assert large.status == 413
    assert "Too large" in await large.text()
    other = await client.post(path, data="{}", headers=own(client, **{"Content-Type": "application/json"}))
    assert other.status == 415
    for method in ("PUT", "DELETE", "PATCH", "OPTIONS"):
        assert (await client.request(method, path, headers=own(client))).status == 405


async def test_a_wrong_token_gets_no_session_and_is_told(client: Client) -> None:
    for text, status, told in (("wrong", 401, "does not know"), ("", 422, "no token"), ("a b", 422, "no token")):
        answer = await client.post("/sign-in", data={"token": text}, headers=own(client), allow_redirects=False)
        assert (answer.status, len(answer.cookies)) == (status, 0)
        assert told in await answer.text()


async def test_signing_out_ends_the_session_and_its_client(cluster: FakeCluster) -> None:
    users: list[FakeUser] = []

    def connect(token: str) -> FakeUser:
        users.append(FakeUser(cluster, token))
        return users[-1]

    made = Console(
        ConsoleConfig(), connect, now=now, time=lambda: 0.0, rng=random.Random(1), registry=Registry("console", "0")
    )
    async with TestClient(TestServer(made.app)) as client:
        token = await signed_in(client)
        kept = {c.key: c.value for c in client.session.cookie_jar}
        data = {"form_token": token}
        answer = await client.post("/sign-out", data=data, headers=own(client), allow_redirects=False)
        assert (answer.status, users[0].closed, len(made.sessions)) == (303, True, 0)
        replayed = await client.get("/loadbalancers", cookies=kept, allow_redirects=False)
        assert replayed.status == 303, "the cookie is worth nothing any more"


async def test_a_refused_change_says_why_in_words(client: Client, cluster: FakeCluster) -> None:
    await signed_in(client)

    async def refuse(_: Call) -> None:
        raise Forbidden('loadbalancers is forbidden: User "x" cannot list', status=403, reason="Forbidden")

    cluster.before = refuse
    page = await client.get("/loadbalancers/a/b")
    assert page.status == 403
    assert "You may not do this" in await page.text()
    listed = await client.get("/loadbalancers")
    assert "You may not list load balancers of all namespaces" in await listed.text()

    async def down(_: Call) -> None:
        raise Unavailable("no connection")

    cluster.before = down
    answer = await client.get("/loadbalancers")
    assert (answer.status, "Try again" in await answer.text()) == (503, True)


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("/loadbalancers?q=1", "/loadbalancers?q=1"),
        ("https://evil.example/", "/"),
        ("//evil.example/", "/"),
        ("/\\evil.example", "/"),
        ("/a\r\nSet-Cookie: x=1", "/"),
        ("javascript:alert(1)", "/"),
        ("", "/"),
    ],
)
def test_after_the_sign_in_one_stays_here(text: str, path: str) -> None:
    assert local_path(text) == path
