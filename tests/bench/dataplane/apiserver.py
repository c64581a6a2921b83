"""The API server in memory behind HTTP, as a process of its own: so that an agent's memory is the agent's alone.

As much of the protocol as the agent speaks, with the project's own fake behind it.
``python -m tests.bench.dataplane.apiserver COUNT`` holds COUNT Services, prints its port, and serves until its standard
input ends.
"""

import asyncio
import socket
import sys
from contextlib import aclosing
from datetime import UTC, datetime
from typing import Any, Final

import msgspec
from aiohttp import web

from cloudprovider.core.errors import KubeError
from cloudprovider.kube.api import ListResult, Resource
from cloudprovider.kube.fake import FakeCluster, FakeKubeClient
from cloudprovider.kube.resources import EVENTS, GUESTCLUSTERS, LEASES, LOADBALANCERS
from tests.bench.dataplane.objects import seed

_RESOURCES: Final[dict[str, Resource[Any]]] = {r.plural: r for r in (EVENTS, GUESTCLUSTERS, LEASES, LOADBALANCERS)}


def _json(body: object, status: int = 200) -> web.Response:
    return web.Response(body=msgspec.json.encode(body), status=status, content_type="application/json")


class Server:
    """Answers for one cluster."""

    def __init__(self, cluster: FakeCluster) -> None:
        self._client = FakeKubeClient(cluster, program="agent")
        self._lists: dict[Resource[Any], ListResult[Any]] = {}
        """What the pages of the last list of each kind are of: all pages are of one moment."""

    def application(self) -> web.Application:
        made = web.Application()
        for root in ("/api/{version}", "/apis/{group}/{version}"):
            made.router.add_route("GET", root + "/{plural}", self._collection)
            of_namespace = root + "/namespaces/{namespace}/{plural}"
            made.router.add_route("POST", of_namespace, self._create)
            for one in (of_namespace + "/{name}", of_namespace + "/{name}/{subresource}"):
                made.router.add_route("*", one, self._one)
        return made

    async def _collection(self, request: web.Request) -> web.StreamResponse:
        resource = _RESOURCES[request.match_info["plural"]]
        if "watch" not in request.query:
            return await self._page(resource, request)
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        await response.prepare(request)
        events = self._client.watch(resource, resource_version=request.query["resourceVersion"])
        async with aclosing(events):
            async for event in events:
                line = msgspec.json.encode({"type": event.type, "object": event.object})
                await response.write(line + b"\n")
        return response

    async def _page(self, resource: Resource[Any], request: web.Request) -> web.Response:
        start, limit = int(request.query.get("continue", 0)), int(request.query["limit"])
        if start == 0:
            self._lists[resource] = await self._client.list(resource)
        found = self._lists[resource]
        follows = str(start + limit) if start + limit < len(found.items) else ""
        metadata = {"resourceVersion": found.resource_version, "continue": follows}
        return _json({"metadata": metadata, "items": found.items[start : start + limit]})

    async def _create(self, request: web.Request) -> web.Response:
        resource = _RESOURCES[request.match_info["plural"]]
        obj = msgspec.json.decode(await request.read(), type=resource.type)
        return await _answer(self._client.create(resource, obj))

    async def _one(self, request: web.Request) -> web.Response:
        resource = _RESOURCES[request.match_info["plural"]]
        namespace, name = request.match_info["namespace"], request.match_info["name"]
        body = await request.read()
        if request.method == "GET":
            return await _answer(self._client.get(resource, namespace, name))
        if request.method == "PUT":
            return await _answer(self._client.replace(resource, msgspec.json.decode(body, type=resource.type)))
        subresource, patch = request.match_info.get("subresource", ""), msgspec.json.decode(body)
        if "fieldManager" not in request.query:
            return await _answer(self._client.merge_patch(resource, namespace, name, patch, subresource=subresource))
        manager = request.query["fieldManager"]
        return await _answer(
            self._client.apply(resource, namespace, name, patch, field_manager=manager, subresource=subresource)
        )


async def _answer(result: Any) -> web.Response:
    try:
        return _json(await result)
    except KubeError as err:
        status = err.status or 500
        return _json({"kind": "Status", "code": status, "reason": err.reason, "message": str(err)}, status)


async def serve(count: int) -> None:
    cluster = FakeCluster(lambda: datetime.now(UTC))
    seed(cluster, count)
    runner = web.AppRunner(Server(cluster).application(), shutdown_timeout=1)
    await runner.setup()
    listener = socket.create_server(("127.0.0.1", 0))
    await web.SockSite(runner, listener).start()
    print(listener.getsockname()[1], flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    await runner.cleanup()


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1])))
