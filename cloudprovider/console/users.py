"""From a token to a user: the one place where the console speaks to the API server, and only ever as that user."""

import random
import ssl
from collections.abc import Callable
from typing import Final

from cloudprovider import __version__
from cloudprovider.console.config import ConsoleConfig
from cloudprovider.console.sessions import UserClient
from cloudprovider.core.api.access import (
    ResourceAttributes,
    SelfSubjectAccessReview,
    SelfSubjectAccessReviewSpec,
    SelfSubjectReview,
)
from cloudprovider.core.errors import ConfigurationError, Invalid
from cloudprovider.kube.api import KubeClient, Resource
from cloudprovider.kube.client import HttpKubeClient
from cloudprovider.kube.credentials import Credentials
from cloudprovider.kube.metrics import RequestCounter
from cloudprovider.kube.resources import SELF_SUBJECT_ACCESS_REVIEWS, SELF_SUBJECT_REVIEWS

CONNECTIONS: Final = 4
"""Of one user, beside one for each live page."""
LONGEST_TOKEN: Final = 16384

Connect = Callable[[str], UserClient]
"""From a token to a client that sends it."""


def connector(config: ConsoleConfig, *, rng: random.Random, requests: RequestCounter) -> Connect:
    """Return how users reach the API server. Raises ConfigurationError.

    The TLS context has authorities and no certificate: to an API server a client certificate would go before the
    user's token.
    """
    context: ssl.SSLContext | None = None
    if config.api_server.startswith("https://"):
        try:
            context = ssl.create_default_context(cafile=config.api_server_ca)
        except (ssl.SSLError, OSError) as error:
            raise ConfigurationError(f"{config.api_server_ca}: not a CA's certificate in PEM: {error}") from error

    def connect(token: str) -> UserClient:
        credentials = Credentials(
            server=config.api_server.rstrip("/"),
            ssl=context,
            authorization=lambda: f"Bearer {token}",
            tls_server_name=config.api_server_name,
        )
        return HttpKubeClient(
            credentials, program="console", version=__version__, rng=rng, connections=CONNECTIONS, requests=requests
        )

    return connect


def checked_token(text: str) -> str:
    """A token as it was pasted, made fit for a header. Raises Invalid for what can be none."""
    token = text.strip().removeprefix("Bearer ").strip()
    if not token or len(token) > LONGEST_TOKEN or not token.isascii() or not token.isprintable() or " " in token:
        raise Invalid("that is no token: paste one line of letters, digits and signs, without spaces")
    return token


async def name_of(client: KubeClient) -> str:
    """Return who the API server takes the client's user for. Raises Forbidden for a token that it does not know."""
    review = await client.create(SELF_SUBJECT_REVIEWS, SelfSubjectReview())
    return review.status.user_info.username


async def may(client: KubeClient, verb: str, resource: Resource, namespace: str = "", name: str = "") -> bool:  # type: ignore[type-arg]
    """Whether the user may do something, by the API server's word: to leave out buttons that would be refused."""
    asked = ResourceAttributes(
        namespace=namespace, verb=verb, group=resource.group, resource=resource.plural, name=name
    )
    review = SelfSubjectAccessReview(spec=SelfSubjectAccessReviewSpec(resource_attributes=asked))
    return (await client.create(SELF_SUBJECT_ACCESS_REVIEWS, review)).status.allowed
