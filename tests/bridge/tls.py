"""Certificates in files, as tests need them: good, expired, of another CA, of another tenant."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cloudprovider.bridge.certificates import KeyPair, issue_server, issue_tenant, make_ca
from cloudprovider.bridge.tlsfiles import TlsPaths
from cloudprovider.core.exchange import Tenant

DOMAIN = "harvester.local"
TENANT = Tenant("tenants", "blue")
OTHER = Tenant("tenants", "green")
DAY = timedelta(days=1)


def now() -> datetime:
    return datetime.now(UTC)


@dataclass
class Authority:
    """A CA, and a folder for what it issues."""

    folder: Path
    ca: KeyPair

    @classmethod
    def make(cls, folder: Path) -> "Authority":
        folder.mkdir(parents=True, exist_ok=True)
        return cls(folder, make_ca("tenants", now=now() - 100 * DAY, validity=200 * DAY))

    def server(self, *hosts: str) -> KeyPair:
        return issue_server(self.ca, hosts or ("127.0.0.1",), now=now(), validity=DAY)

    def client(
        self, tenant: Tenant = TENANT, *, validity: timedelta = DAY, made: datetime | None = None, domain: str = DOMAIN
    ) -> KeyPair:
        return issue_tenant(self.ca, tenant, domain, now=made or now(), validity=validity)

    def write(self, name: str, pair: KeyPair, ca: KeyPair | None = None) -> TlsPaths:
        paths = TlsPaths(*(self.folder / f"{name}.{what}" for what in ("crt", "key", "ca")))
        for path, content in (
            (paths.key, pair.key),
            (paths.certificate, pair.certificate),
            (paths.ca, (ca or self.ca).certificate),
        ):
            fresh = path.with_suffix(path.suffix + ".new")
            fresh.write_bytes(content)
            fresh.replace(path)
        return paths
