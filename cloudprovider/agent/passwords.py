"""The passwords of BGP sessions, of one Secret, which is read again and again: to watch it takes more rights than its
name."""

import asyncio
import logging
from base64 import b64decode
from collections.abc import Callable, Mapping
from typing import Final

from cloudprovider.core.api.bgp import PASSWORDS_SECRET
from cloudprovider.core.errors import KubeError, NotFound
from cloudprovider.kube.api import KubeClient
from cloudprovider.kube.resources import SECRETS

log = logging.getLogger(__name__)

EVERY: Final = 30.0
"""Seconds between two looks."""


class Passwords:
    """``known``: by key, as of the last time that it could be read; None: never yet."""

    def __init__(self, client: KubeClient, namespace: str) -> None:
        self._client = client
        self._namespace = namespace
        self.known: Mapping[str, str] | None = None
        self._told = ""

    async def read(self) -> bool:
        """Look once; return whether they could be read. If not, what is known stays, and the log says why, once for
        each reason."""
        try:
            secret = await self._client.get(SECRETS, self._namespace, PASSWORDS_SECRET)
        except NotFound:
            self.known = {}
        except KubeError as error:
            if str(error) != self._told:
                self._told = str(error)
                extra = {"secret": PASSWORDS_SECRET, "error": self._told}
                log.warning("passwords of BGP sessions not read", extra=extra)
            return False
        else:
            self.known = {key: _decoded(value) for key, value in secret.data.items()}
        self._told = ""
        return True

    async def watch(self, needed: Callable[[], bool], changed: Callable[[], None]) -> None:
        """Look until cancelled, while any are ``needed``."""
        while True:
            await asyncio.sleep(EVERY)
            if needed():
                before = self.known
                await self.read()
                if self.known != before:
                    changed()


def _decoded(value: str) -> str:
    try:
        return b64decode(value).decode().rstrip("\n")
    except ValueError:
        return "\0"  # which no password can be
