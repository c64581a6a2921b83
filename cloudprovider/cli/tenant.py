"""``cloudprovider tenant``: the tenants' CA, a guest cluster's certificate, and the bridge's own.

For those who have no cert-manager. One CA signs both sides: a tenant's certificate is for clients only, the bridge's
for servers only. Files with keys have mode 0600, and are replaced whole.
"""

import base64
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Final

from cloudprovider.bridge.certificates import KeyPair, issue_server, issue_tenant, make_ca
from cloudprovider.cli.crds import dump
from cloudprovider.core.errors import ConfigurationError
from cloudprovider.core.exchange import Tenant
from cloudprovider.kube.resources import GUESTCLUSTERS

CA_VALIDITY: Final = timedelta(days=3650)
SYSTEM_NAMESPACE: Final = "cloudprovider-system"
"""Where the programs live, on the host as in a guest (manifests/)."""

GUEST_SECRET: Final = "cloudprovider-bridge"  # noqa: S105 - a name
SERVER_SECRET: Final = "cloudprovider-bridge-tls"  # noqa: S105 - a name

_CERTIFICATE: Final = "tls.crt"
_KEY: Final = "tls.key"
_CA: Final = "ca.crt"


@dataclass(frozen=True, kw_only=True)
class TenantLimits:
    """What goes into the GuestCluster's spec; empty ``networks`` and ``pools`` limit nothing."""

    node_cidrs: Sequence[str]
    networks: Sequence[str] = ()
    pools: Sequence[str] = ()


@dataclass(frozen=True, kw_only=True)
class Written:
    """What a command has written: manifests to apply on the host and in the guest, and PEM files."""

    host: tuple[Path, ...] = ()
    guest: tuple[Path, ...] = ()
    pem: tuple[Path, ...] = ()
    ca_is_new: bool = False


def open_ca(folder: Path, *, now: datetime) -> tuple[KeyPair, bool]:
    """Return the CA in ``folder`` (ca.crt, ca.key), and whether it has just been made there.

    Raises ConfigurationError: half a CA, a key that others may read, a folder that can't be written.
    """
    certificate, key = folder / "ca.crt", folder / "ca.key"
    try:
        if not certificate.exists() and not key.exists():
            ca = make_ca("cloudprovider tenants", now=now, validity=CA_VALIDITY)
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            _write(key, ca.key, secret=True)
            _write(certificate, ca.certificate, secret=False)
            return ca, True
        for path in (certificate, key):
            if not path.exists():
                raise ConfigurationError(f"{path} is missing, but its counterpart is there: put the CA back whole")
        if key.stat().st_mode & 0o077:
            raise ConfigurationError(f"{key} can be read by others than its owner: chmod 600 {key}")
        return KeyPair(certificate.read_bytes(), key.read_bytes()), False
    except OSError as e:
        raise ConfigurationError(f"CA folder {folder}: {e.strerror}: {e.filename}") from e


def issue(
    tenant: Tenant,
    limits: TenantLimits,
    *,
    ca_folder: Path,
    out: Path,
    bridge: str,
    trust_domain: str,
    validity: timedelta,
    now: datetime,
    pem: bool = False,
) -> Written:
    """Issue ``tenant``'s certificate; write what to apply on the host and, with the key in it, in the guest.

    ``pem``: for a guest program outside of its cluster, files NAME.crt and NAME.key instead of a Secret.
    Raises ConfigurationError.
    """
    ca, is_new = open_ca(ca_folder, now=now)
    pair = issue_tenant(ca, tenant, trust_domain, now=now, validity=validity)
    host, guest = out / f"{tenant.cluster}.host.yaml", out / f"{tenant.cluster}.guest.yaml"
    spec = {"nodeCidrs": list(limits.node_cidrs)}
    spec |= {name: list(v) for name, v in (("networks", limits.networks), ("pools", limits.pools)) if v}
    guest_cluster = {
        "apiVersion": GUESTCLUSTERS.api_version,
        "kind": GUESTCLUSTERS.kind,
        "metadata": {"name": tenant.cluster, "namespace": tenant.namespace},
        "spec": spec,
    }
    secret = _secret(GUEST_SECRET, "Opaque", pair, ca, {"config.yaml": dump({"bridge": bridge}).encode()})
    namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": SYSTEM_NAMESPACE}}
    _prepare(out)
    _write(host, dump(guest_cluster).encode(), secret=False)
    if pem:
        return Written(host=(host,), pem=_write_pem(out, tenant.cluster, pair, ca), ca_is_new=is_new)
    _write(guest, dump(namespace, secret).encode(), secret=True)
    return Written(host=(host,), guest=(guest,), ca_is_new=is_new)


def issue_bridge(
    hosts: Sequence[str], *, ca_folder: Path, out: Path, validity: timedelta, now: datetime, pem: bool = False
) -> Written:
    """Issue the bridge's certificate for the names and addresses that guests reach it by.

    ``pem``: files bridge.crt and bridge.key instead of a Secret. Raises ConfigurationError.
    """
    ca, is_new = open_ca(ca_folder, now=now)
    pair = issue_server(ca, hosts, now=now, validity=validity)
    _prepare(out)
    if pem:
        return Written(pem=_write_pem(out, "bridge", pair, ca), ca_is_new=is_new)
    path = out / "bridge.host.yaml"
    _write(path, dump(_secret(SERVER_SECRET, "kubernetes.io/tls", pair, ca, {})).encode(), secret=True)
    return Written(host=(path,), ca_is_new=is_new)


def _secret(name: str, type_: str, pair: KeyPair, ca: KeyPair, more: dict[str, bytes]) -> dict[str, Any]:
    data = {_CERTIFICATE: pair.certificate, _KEY: pair.key, _CA: ca.certificate} | more
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": name, "namespace": SYSTEM_NAMESPACE},
        "type": type_,
        "data": {key: base64.b64encode(value).decode() for key, value in data.items()},
    }


def _write_pem(out: Path, name: str, pair: KeyPair, ca: KeyPair) -> tuple[Path, ...]:
    key, certificate, authority = out / f"{name}.key", out / f"{name}.crt", out / "ca.crt"
    _write(key, pair.key, secret=True)
    _write(certificate, pair.certificate, secret=False)
    _write(authority, ca.certificate, secret=False)
    return (certificate, key, authority)


def _prepare(out: Path) -> None:
    try:
        out.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as e:
        raise ConfigurationError(f"output folder {out}: {e.strerror}") from e


def _write(path: Path, content: bytes, *, secret: bool) -> None:
    """Replace ``path`` whole, so that nobody ever reads half a key, nor one with another's mode."""
    try:
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)  # mode 0600
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content)
                os.fchmod(file.fileno(), 0o600 if secret else 0o644)
            Path(name).replace(path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
    except OSError as e:
        raise ConfigurationError(f"{path} can't be written: {e.strerror}") from e
