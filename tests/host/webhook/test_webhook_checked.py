"""``kubectl lb check`` tries the webhook that is served."""

import sys

import pytest

from cloudprovider.cli.kubectl.check import webhook
from cloudprovider.cli.kubectl.screen import Progress
from cloudprovider.cli.kubectl.session import Session
from cloudprovider.host.clock import utc_now
from cloudprovider.kube.client import HttpKubeClient
from tests.host.webhook.served import Served

pytestmark = [pytest.mark.apiserver, pytest.mark.asyncio(loop_scope="module")]


async def test_it_is_registered_and_answers(client: HttpKubeClient, served: Served) -> None:
    session = Session(client, "host", "default", everywhere=True, now=utc_now(), progress=Progress(sys.stderr))
    (found,) = await webhook(session)
    assert (found.verdict, found.message) == ("ok", "registered, and answers")
    assert sum(served.webhook.reviews.values()) >= 1
