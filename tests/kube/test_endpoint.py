"""The health endpoint, over a real socket."""

import socket

import aiohttp
import pytest

from cloudprovider.core.errors import ConfigurationError
from cloudprovider.kube.endpoint import Probes, serve, split_address


async def get(port: int, path: str) -> tuple[int, str, str]:
    timeout = aiohttp.ClientTimeout(total=5)
    async with aiohttp.ClientSession(timeout=timeout) as session, session.get(f"http://127.0.0.1:{port}{path}") as r:
        return r.status, await r.text(), r.headers["Content-Type"]


async def test_ready_says_why_not_and_then_is() -> None:
    reasons = ["the API server has not answered yet", "network default/vlan1 is not open"]
    async with serve("127.0.0.1:0", Probes(ready=lambda: reasons)) as port:
        status, text, _ = await get(port, "/readyz")
        assert (status, text.splitlines()) == (503, reasons)
        assert (await get(port, "/livez"))[:2] == (200, "ok\n")
        reasons.clear()
        assert (await get(port, "/readyz"))[:2] == (200, "ok\n")


async def up() -> bytes:
    return b"up 1\n"


async def test_metrics_are_prometheus_text() -> None:
    async with serve("127.0.0.1:0", Probes(metrics=up)) as port:
        status, text, content_type = await get(port, "/metrics")
    assert (status, text) == (200, "up 1\n")
    assert content_type == "text/plain; version=0.0.4; charset=utf-8"


async def test_a_taken_port_is_one_clear_error() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigurationError, match=f"can't listen on 127.0.0.1:{port}.*--endpoint"):
            async with serve(f"127.0.0.1:{port}", Probes()):
                pytest.fail("it listens on a port that is taken")


async def test_the_port_is_free_again_afterwards() -> None:
    async with serve("127.0.0.1:0", Probes()) as port:
        pass
    async with serve(f"127.0.0.1:{port}", Probes()) as again:
        assert again == port


@pytest.mark.parametrize(
    ("text", "want"),
    [("127.0.0.1:80", ("127.0.0.1", 80)), ("[::1]:8080", ("::1", 8080)), ("0.0.0.0:0", ("0.0.0.0", 0))],
)
def test_addresses(text: str, want: tuple[str, int]) -> None:
    assert split_address(text) == want


@pytest.mark.parametrize("text", ["", "8080", ":8080", "localhost:8080", "127.0.0.1:x", "127.0.0.1:65536", "::1:80"])
def test_malformed_addresses(text: str) -> None:
    with pytest.raises(ConfigurationError, match="ADDRESS:PORT"):
        split_address(text)
