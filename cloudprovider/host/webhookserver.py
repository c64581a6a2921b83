"""The webhook's port: HTTPS with a certificate that changes while it is served."""

import asyncio
import os
import random
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import datetime
from http import HTTPStatus
from typing import Final

from aiohttp import web

from cloudprovider.bridge.inspection import end_of
from cloudprovider.core.errors import ConfigurationError
from cloudprovider.host.clock import Clock
from cloudprovider.host.webhook import AdmissionWebhook
from cloudprovider.host.webhookcertificate import Lives, Material
from cloudprovider.host.webhooktrust import CHECK_SECONDS, WebhookTrust
from cloudprovider.kube.api import KubeClient
from cloudprovider.kube.endpoint import split_address

Answer = Callable[[bytes], Awaitable[bytes]]
"""From a review's JSON to its answer's; raises ValueError for what is none."""

PATH: Final = "/validate"
BODY_LIMIT: Final = 4 * 1024 * 1024
"""Bytes of a review: the object before and after, each as big as etcd takes (1.5 MiB), and what stands around them."""
BODY_SECONDS: Final = 5.0
"""For a review to come in; the API server gives up then."""


async def run(
    client: KubeClient,
    webhook: AdmissionWebhook,
    address: str,
    *,
    namespace: str,
    now: Clock,
    rng: random.Random,
    lives: Lives | None = None,
    check_seconds: float = CHECK_SECONDS,
    certified: Callable[[datetime], None] = lambda _: None,
) -> None:
    """Serve ``webhook`` on ``address`` ("ADDRESS:PORT") until cancelled, with a certificate of its own.

    Every copy of the program does, whether it leads or not. Nothing is listened on before there is a certificate.
    ``namespace`` holds the Secret; ``certified`` is told when the certificate ends that is used from now
    on. Raises ConfigurationError if the address can't be listened on.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    usable = asyncio.Event()

    def use(material: Material) -> None:
        load(context, material)
        certified(end_of(material.serving))
        usable.set()

    trust = WebhookTrust(client, use, namespace=namespace, now=now, rng=rng, lives=lives, check_seconds=check_seconds)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(trust.run(), name="webhook's certificate")
        await usable.wait()
        async with serve(address, context, webhook.answer):
            await asyncio.Future()


def load(context: ssl.SSLContext, material: Material) -> None:
    """Have new connections shown this certificate; those that stand go on.

    Python loads keys from files only: this one is memory (memfd_create(2)), as a key on a disk outlives its use.
    """
    fd = os.memfd_create("webhook")
    with os.fdopen(fd, "wb") as file:
        file.write(material.serving.certificate + material.serving.key)
        file.flush()
        context.load_cert_chain(f"/proc/self/fd/{fd}")


@asynccontextmanager
async def serve(address: str, context: ssl.SSLContext, answer: Answer) -> AsyncIterator[None]:
    """Listen while the block runs. Raises ConfigurationError."""
    host, port = split_address(address)
    app = web.Application(client_max_size=BODY_LIMIT)
    app.router.add_post(PATH, _handler(answer))
    runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=1.0)
    await runner.setup()
    try:
        site = web.TCPSite(runner, host, port, ssl_context=context)
        try:
            await site.start()
        except OSError as e:
            raise ConfigurationError(
                f"the webhook can't listen on {address}: {e.strerror or e}; choose another with --webhook-address"
            ) from e
        yield
    finally:
        await runner.cleanup()


def _handler(answer: Answer) -> Callable[[web.Request], Awaitable[web.Response]]:
    async def handle(request: web.Request) -> web.Response:
        try:
            async with asyncio.timeout(BODY_SECONDS):
                body = await request.read()
        except TimeoutError:
            return web.Response(
                status=HTTPStatus.REQUEST_TIMEOUT, text=f"the review took longer than {BODY_SECONDS:g} s\n"
            )
        try:
            return web.Response(body=await answer(body), content_type="application/json")
        except ValueError as error:
            return web.Response(status=HTTPStatus.BAD_REQUEST, text=f"{error}\n")

    return handle
