"""What the bridge costs: ``python -m tests.bridge.measure``. One JSON line per figure.

Server and client are two processes on loopback with mutual TLS; behind the server stands the backend in memory, so the
figures are the bridge's own.
"""

import asyncio
import json
import subprocess
import sys
import tempfile
import time
from ipaddress import ip_network
from pathlib import Path

from cloudprovider.bridge.api import Hello, StateChange, TenantPolicy
from cloudprovider.bridge.client import ClientConfig, GrpcBridge
from cloudprovider.bridge.fake import MemoryBackend, MemoryTenant
from cloudprovider.bridge.server import BridgeServer, ServerConfig
from cloudprovider.bridge.tlsfiles import TlsPaths
from cloudprovider.core.exchange import Listener, LoadBalancerRequest, ServiceKey
from tests.bridge.tls import DOMAIN, TENANT, Authority

SERVICES = 5000
AT_ONCE = 32
REQUEST = LoadBalancerRequest(listeners=(Listener("http", "TCP", 80, 30080), Listener("dns", "UDP", 53, 30053)))


async def serve(paths: TlsPaths) -> None:
    backend = MemoryBackend(network=ip_network("10.0.0.0/8"))
    backend.set_tenant(TENANT, MemoryTenant(policy=TenantPolicy(calls_per_second=100_000)))
    server = BridgeServer(ServerConfig(listen="127.0.0.1:0", tls=paths, trust_domain=DOMAIN), backend)
    print(await server.start(), flush=True)
    while await asyncio.to_thread(sys.stdin.readline):  # each line asks for the CPU time so far
        print(time.process_time(), flush=True)
    await server.stop()


def report(name: str, value: float, unit: str, aim: float) -> None:
    command = "python -m tests.bridge.measure"
    row = {"name": name, "value": round(value, 3), "unit": unit, "aim": aim, "holds": value < aim, "command": command}
    print(json.dumps(row))


async def snapshot(bridge: GrpcBridge) -> float:
    began = time.perf_counter()
    known = 0
    async for event in bridge.watch():
        if isinstance(event, StateChange):
            known += len(event.updated)
            if event.synced:
                break
    assert known == SERVICES, known
    return time.perf_counter() - began


async def measure(folder: Path) -> None:
    authority = Authority.make(folder)
    server_paths = authority.write("server", authority.server())
    client_paths = authority.write("client", authority.client())
    server = subprocess.Popen(  # noqa: ASYNC220 - nothing else runs yet
        [sys.executable, "-m", "tests.bridge.measure", str(server_paths.certificate.with_suffix(""))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert server.stdin is not None
    assert server.stdout is not None
    stdin, stdout = server.stdin, server.stdout

    def server_cpu() -> float:
        stdin.write("\n")
        stdin.flush()
        return float(stdout.readline())

    try:
        target = f"127.0.0.1:{int(await asyncio.to_thread(stdout.readline))}"
        hello = Hello(cluster_uid="uid", guest_version="1")
        bridge = GrpcBridge(ClientConfig(target=target, tls=client_paths, hello=hello))
        await bridge.connect()
        services = iter([ServiceKey("default", f"service-{i}", f"uid-{i}") for i in range(SERVICES)])

        async def worker() -> None:
            for key in services:
                await bridge.ensure(key, REQUEST)

        began, client_before, server_before = time.perf_counter(), time.process_time(), server_cpu()
        await asyncio.gather(*(worker() for _ in range(AT_ONCE)))
        client, host = time.process_time() - client_before, server_cpu() - server_before
        report("bridge ensure, guest side", client / SERVICES * 1000, "ms CPU", 0.8)
        report("bridge ensure, host side", host / SERVICES * 1000, "ms CPU", 0.8)
        report("bridge ensures", (time.perf_counter() - began) / SERVICES * 1000, "ms each", 1.6)
        took = await snapshot(bridge)
        report(f"bridge snapshot of {SERVICES} load balancers", took, "s", 1.0)
        await bridge.close()
    finally:
        stdin.close()
        server.wait(10)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        asyncio.run(serve(TlsPaths(*(Path(f"{sys.argv[1]}.{what}") for what in ("crt", "key", "ca")))))
    else:
        with tempfile.TemporaryDirectory() as folder:
            asyncio.run(measure(Path(folder)))
