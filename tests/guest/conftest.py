from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from cloudprovider.bridge import client
from cloudprovider.guest import services
from tests.guest.chain import Wire, wired


@pytest.fixture
async def wire(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Wire]:
    """A guest and its host with a real bridge between them; what waits for people to lose patience waits less."""
    monkeypatch.setattr(services, "NOTICE_SECONDS", 0.3)
    monkeypatch.setattr(client, "FILES_SECONDS", 0.05)
    monkeypatch.setattr(client, "DIAGNOSIS_SECONDS", 0.1)
    async with wired(tmp_path) as made:
        yield made
