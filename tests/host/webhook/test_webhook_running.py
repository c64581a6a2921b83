"""The webhook as it runs: its certificate rotates under way, copies share it, and what happens when it is away."""

import asyncio
import base64
import ssl
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path

import aiohttp
import pytest
import pytest_asyncio
import yaml

from cloudprovider.core.api.kubernetes import Lease, LeaseSpec
from cloudprovider.core.api.meta import ObjectMeta
from cloudprovider.host.assembly import NAME
from cloudprovider.host.clock import utc_now
from cloudprovider.host.webhookcertificate import Lives, read
from cloudprovider.host.webhooktrust import CONFIGURATION, SECRET
from cloudprovider.kube.client import HttpKubeClient
from cloudprovider.kube.resources import LEASES
from tests.conftest import ROOT
from tests.host.webhook.served import PROBE, Admin, bundles, load_balancer, secret, serving
from tests.host.world import LIMIT
from tests.lab import netns, programs
from tests.lab.controlplane import ControlPlane

pytestmark = [pytest.mark.apiserver, pytest.mark.timeout(120), pytest.mark.asyncio(loop_scope="module")]

SHORT = Lives(ca=timedelta(seconds=9), serving=timedelta(seconds=3))
"""A certificate every two seconds, a CA every six."""


async def shown(address: str, bundle: str) -> str:
    """The certificate shown to a newcomer who trusts ``bundle``, as the configuration has it, and nothing else."""
    host, _, port = address.rpartition(":")
    context = ssl.create_default_context(cadata=base64.b64decode(bundle).decode())
    async with asyncio.timeout(LIMIT):
        _, writer = await asyncio.open_connection(host, int(port), ssl=context, server_hostname=host)
        try:
            shown: bytes = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
            return ssl.DER_cert_to_PEM_cert(shown)
        finally:
            writer.close()
            await writer.wait_closed()


def empty_secret(plane: ControlPlane) -> None:
    """As it stands in the manifest."""
    plane.kubectl("-n", programs.SYSTEM_NAMESPACE, "patch", "secret", SECRET, "-p", '{"data":null}')


async def test_certificates_and_cas_rotate_while_it_is_asked(
    plane: ControlPlane, address: str, admin: Admin, client: HttpKubeClient
) -> None:
    """Every single question is answered by the webhook, and every newcomer trusts what it is shown."""
    empty_secret(plane)  # others' certificates live for months
    certificates: set[str] = set()
    authorities: set[bytes] = set()
    asked = 0
    async with serving(plane, address, lives=SHORT, check_seconds=0.4), asyncio.timeout(LIMIT * 2):
        await admin.in_force()
        while len(certificates) < 6 or len(authorities) < 3:
            (bundle,) = await bundles(client)
            certificates.add(await shown(address, bundle))
            authorities.add(base64.b64decode(bundle).split(b"-----END")[0])
            outcome = await admin.create(PROBE)
            asked += 1
            assert "denied the request: spec.ranges[0].subnet" in outcome.message
            await asyncio.sleep(0.05)
    assert asked > 50


async def test_two_copies_share_one_certificate(plane: ControlPlane, address: str, client: HttpKubeClient) -> None:
    """Begun together over an empty Secret; the second one listens elsewhere."""
    plane.kubectl(
        "-n", programs.SYSTEM_NAMESPACE, "patch", "secret", "cloudprovider-webhook-tls", "-p", '{"data":null}'
    )
    other = f"127.0.0.1:{netns.free_port('', '127.0.0.1')}"
    async with _both(plane, address, other):
        (bundle,) = await bundles(client)
        first, second = await shown(address, bundle), await shown(other, bundle)
        material = read((await secret(client)).data)
    assert first == second
    assert material is not None
    assert first.strip() == material.serving.certificate.decode().strip()


@asynccontextmanager
async def _both(plane: ControlPlane, one: str, other: str) -> AsyncIterator[None]:
    copies = [serving(plane, one), serving(plane, other)]
    await asyncio.gather(*(copy.__aenter__() for copy in copies))
    try:
        yield
    finally:
        await asyncio.gather(*(copy.__aexit__(None, None, None) for copy in copies))


@pytest.mark.parametrize("server_side", [True, False])
async def test_applying_the_manifest_again_keeps_what_the_program_wrote(
    plane: ControlPlane, address: str, admin: Admin, client: HttpKubeClient, server_side: bool
) -> None:
    async with serving(plane, address, check_seconds=LIMIT * 10):  # it does not look again in this test
        await admin.in_force()
        before = await bundles(client), (await secret(client)).data
        rendered = plane.kubectl("kustomize", programs.MANIFESTS / "host")
        wanted = [item for item in yaml.safe_load_all(rendered) if item["metadata"]["name"] == SECRET]
        flags = ("--server-side",) if server_side else ()
        plane.kubectl("apply", *flags, "-f", "-", stdin=yaml.safe_dump_all(wanted))
        programs.register_webhook(plane, f"https://{address}", server_side=server_side)
        assert (await bundles(client), (await secret(client)).data) == before
        assert before[0] != {""}
        assert "denied the request" in (await admin.create(PROBE)).message


async def test_a_bundle_that_was_replaced_comes_back_while_it_runs(
    plane: ControlPlane, address: str, admin: Admin, client: HttpKubeClient
) -> None:
    async with serving(plane, address):
        await admin.in_force()
        before = await bundles(client)
        plane.kubectl("delete", "validatingwebhookconfiguration", CONFIGURATION)
        programs.register_webhook(plane, f"https://{address}")
        await admin.in_force()
        assert await bundles(client) == before


async def test_while_it_is_away_pools_stay_and_load_balancers_come(
    plane: ControlPlane, address: str, admin: Admin
) -> None:
    async with serving(plane, address):
        await admin.in_force()
    outcome = await admin.create(PROBE)
    assert outcome.code == 500
    assert 'failed calling webhook "ippools.cloudprovider.harvesterhci.io"' in outcome.message
    made = load_balancer("in-between", ipam="dhcp", ipPool="what-the-webhook-would-refuse")
    assert (await admin.create(made)).done
    assert (await admin.merge(made, {"spec": {"description": "x"}})).done
    assert (await admin.delete(made)).done


@pytest_asyncio.fixture(loop_scope="module")
async def foreign_lease(client: HttpKubeClient) -> AsyncIterator[None]:
    """Somebody else leads, for an hour."""
    now = utc_now().strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    spec = LeaseSpec(holder_identity="other", lease_duration_seconds=3600, acquire_time=now, renew_time=now)
    metadata = ObjectMeta(name=NAME, namespace=programs.SYSTEM_NAMESPACE)
    await client.create(LEASES, Lease(metadata=metadata, spec=spec))
    yield
    await client.delete(LEASES, programs.SYSTEM_NAMESPACE, NAME)


async def test_the_program_answers_while_another_copy_leads(
    plane: ControlPlane, address: str, admin: Admin, foreign_lease: None, tmp_path: Path
) -> None:
    programs.issue_bridge_certificate(tmp_path, "127.0.0.1")
    port, endpoint = netns.free_port("", "127.0.0.1"), netns.free_port("", "127.0.0.1")
    flags = [
        f"--kubeconfig={programs.account(plane, 'host')}",
        f"--bridge-address=127.0.0.1:{port}",
        f"--endpoint=127.0.0.1:{endpoint}",
        f"--webhook-address={address}",
        *(f"--tls-{part}={tmp_path / f'bridge.{end}'}" for part, end in (("cert", "crt"), ("key", "key"))),
        f"--tenant-ca={tmp_path / 'ca.crt'}",
    ]
    command = [sys.executable, "-m", "cloudprovider.cli.main", "host", *flags]
    log = tmp_path / "log"
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(*command, stdout=output, stderr=output, cwd=ROOT)
    try:
        await admin.in_force()
        async with aiohttp.ClientSession() as session:
            async with session.get(f"http://127.0.0.1:{endpoint}/readyz") as response:
                assert response.status == 200  # it could lead at once
            async with session.get(f"http://127.0.0.1:{endpoint}/metrics") as response:
                counted = await response.text()
        assert 'cloudprovider_host_admission_reviews_total{outcome="refused",resource="ippools"} 1.0' in counted
        process.terminate()
        async with asyncio.timeout(LIMIT):
            assert await process.wait() == 0, log.read_text()
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
