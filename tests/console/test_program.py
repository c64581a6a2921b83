"""The console as a process, and as it is installed."""

import asyncio
import os
import random
import signal
import ssl
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml
from yarl import URL

from cloudprovider.cli.main import build_parser
from cloudprovider.console.config import ConsoleConfig
from cloudprovider.console.program import run
from cloudprovider.console.users import connector
from cloudprovider.core.errors import ConfigurationError
from cloudprovider.kube.metrics import RequestCounter
from tests.conftest import ROOT
from tests.lab import netns
from tests.lab.controlplane import ControlPlane

MANIFEST = ROOT / "manifests" / "components" / "console" / "console.yaml"
LIMIT = 30.0


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"console_address": "0.0.0.0:0"}, "would show tokens to the network"),
        ({"console_address": "[::]:0"}, "would show tokens to the network"),
        ({"console_address": "nonsense"}, "is not ADDRESS:PORT"),
        ({"tls_cert": Path(__file__)}, "belong together"),
        ({"tls_cert": Path(__file__), "tls_key": Path(__file__)}, "can't be loaded"),
        ({"api_server_ca": Path(__file__)}, "not a CA's certificate"),
    ],
)
async def test_settings_that_can_not_work_are_refused(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigurationError, match=says):
        await run(replace(ConsoleConfig(endpoint="127.0.0.1:0"), **settings))


@pytest.mark.apiserver
def test_the_console_brings_no_certificate_of_its_own(plane: ControlPlane) -> None:
    """A client certificate would go before the user's token, and make everybody the console."""
    config = ConsoleConfig(api_server=plane.url, api_server_ca=plane.ca)

    async def credentials() -> None:
        client = connector(config, rng=random.Random(1), requests=RequestCounter())("a-token")
        found = client._credentials  # type: ignore[attr-defined]
        assert found.authorization() == "Bearer a-token"
        assert found.ssl.verify_mode is ssl.CERT_REQUIRED
        await client.close()

    asyncio.run(credentials())
    assert not any("kubeconfig" in name or "token" in name for name in ConsoleConfig.__dataclass_fields__)


@pytest.mark.apiserver
async def test_the_program_serves_by_tls_and_stops_when_told(plane: ControlPlane, operator: str) -> None:
    pair = plane.authority.issue("console", common_name="console", hosts=["127.0.0.1"])
    port, health = netns.free_port("", "127.0.0.1"), netns.free_port("", "127.0.0.1")
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "cloudprovider.cli.main", "console", "--api-server", plane.url),
        *("--api-server-ca", str(plane.ca), "--console-address", f"0.0.0.0:{port}"),
        *("--tls-cert", str(pair.certificate), "--tls-key", str(pair.key), "--endpoint", f"127.0.0.1:{health}"),
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stderr is not None
    lines: list[str] = []
    try:
        async with asyncio.timeout(LIMIT):
            while "The console is served" not in "".join(lines):
                lines.append((await process.stderr.readline()).decode())
                assert lines[-1], "".join(lines)
        url = URL(f"https://127.0.0.1:{port}")
        trust = ssl.create_default_context(cafile=plane.ca)
        async with aiohttp.ClientSession(cookie_jar=aiohttp.CookieJar(unsafe=True)) as session:
            headers = {"Origin": str(url).rstrip("/")}
            data = {"token": operator}
            async with session.post(url / "sign-in", data=data, headers=headers, ssl=trust) as answer:
                assert "10.0.8.100" in await answer.text()
                (cookie,) = answer.history[0].cookies.values()
                assert (cookie.key, cookie["secure"]) == ("__Host-console", True)
            async with session.get(f"http://127.0.0.1:{health}/metrics") as answer:
                text = await answer.text()
                assert "cloudprovider_console_sessions 1.0\n" in text
                assert 'code="200",resource="loadbalancers",verb="list"' in text
                assert operator not in text
        process.send_signal(signal.SIGTERM)
        _, rest = await asyncio.wait_for(process.communicate(), LIMIT)
        assert process.returncode == 0, rest.decode()
        assert operator not in "".join(lines) + rest.decode(), "no token in a log"
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


@pytest.mark.apiserver
def test_it_is_installed_without_any_right(plane: ControlPlane) -> None:
    account, service, deployment = yaml.safe_load_all(MANIFEST.read_text())
    plane.kubectl("create", "namespace", "cloudprovider-system")
    plane.kubectl("apply", "--server-side", "--dry-run=server", "--validate=strict", "-f", MANIFEST)
    assert [account["kind"], service["kind"], deployment["kind"]] == ["ServiceAccount", "Service", "Deployment"]
    pod = deployment["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert build_parser().parse_args(container["args"]).log_format == ["json"]
    assert account["automountServiceAccountToken"] is False
    assert pod["automountServiceAccountToken"] is False
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert pod["securityContext"]["runAsNonRoot"] is True
    for path in (ROOT / "manifests").rglob("*.yaml"):
        if "RoleBinding" in (text := path.read_text()):
            assert "cloudprovider-console" not in text, f"{path} gives it something"
