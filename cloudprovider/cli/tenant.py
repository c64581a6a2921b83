"""``cloudprovider tenant``, as far as it is files: the tenants' CA in a folder, and what is to be applied.

One CA signs both sides: a tenant's certificate is for clients only, the bridge's for servers only. Files with keys have
mode 0600, and are replaced whole.
"""

import base64
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from cloudprovider.bridge import authority
from cloudprovider.bridge.authority import CERTIFICATE, KEY, TRUSTED
from cloudprovider.bridge.certificates import KeyPair, issue_server, issue_tenant
from cloudprovider.cli.crds import dump
from cloudprovider.core.errors import ConfigurationError
from cloudprovider.core.exchange import Tenant
from cloudprovider.core.naming import GUEST_SECRET, SERVER_SECRET
from cloudprovider.core.permissions import SYSTEM
from cloudprovider.kube.resources import GUESTCLUSTERS

Document = dict[str, Any]
"""A Kubernetes object, as it is written into a file."""


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
            ca = authority.make(now).signing
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            write(key, ca.key, secret=True)
            write(certificate, ca.certificate, secret=False)
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
    host = out / f"{tenant.cluster}.host.yaml"
    spec = {"nodeCidrs": list(limits.node_cidrs)}
    spec |= {name: list(v) for name, v in (("networks", limits.networks), ("pools", limits.pools)) if v}
    guest_cluster = {
        "apiVersion": GUESTCLUSTERS.api_version,
        "kind": GUESTCLUSTERS.kind,
        "metadata": {"name": tenant.cluster, "namespace": tenant.namespace},
        "spec": spec,
    }
    prepare(out)
    write(host, dump(guest_cluster).encode(), secret=False)
    written = write_guest(out, tenant.cluster, pair, ca.certificate, bridge=bridge, pem=pem)
    return replace(written, host=(host,), ca_is_new=is_new)


def issue_bridge(
    hosts: Sequence[str], *, ca_folder: Path, out: Path, validity: timedelta, now: datetime, pem: bool = False
) -> Written:
    """Issue the bridge's certificate for the names and addresses that guests reach it by.

    ``pem``: files bridge.crt and bridge.key instead of a Secret. Raises ConfigurationError.
    """
    ca, is_new = open_ca(ca_folder, now=now)
    pair = issue_server(ca, hosts, now=now, validity=validity)
    prepare(out)
    if pem:
        return Written(pem=_write_pem(out, "bridge", pair, ca.certificate), ca_is_new=is_new)
    path = out / "bridge.host.yaml"
    write(path, dump(server_secret(pair, ca.certificate)).encode(), secret=True)
    return Written(host=(path,), ca_is_new=is_new)


def write_guest(out: Path, name: str, pair: KeyPair, trusted: bytes, *, bridge: str, pem: bool = False) -> Written:
    """Write what is to be applied in the guest, or (``pem``) files for a program outside of it."""
    prepare(out)
    if pem:
        return Written(pem=_write_pem(out, name, pair, trusted))
    path = out / f"{name}.guest.yaml"
    write(path, dump(*guest_objects(pair, trusted, bridge)).encode(), secret=True)
    return Written(guest=(path,))


def guest_objects(pair: KeyPair, trusted: bytes, bridge: str) -> tuple[Document, Document]:
    """The namespace and the Secret that the guest's program starts with. ``trusted``: the CAs of the bridge, PEM.
    ``bridge`` empty: its address stays what it is there."""
    namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": SYSTEM}}
    settings = {"config.yaml": dump({"bridge": bridge}).encode()} if bridge else {}
    return namespace, _secret(GUEST_SECRET, "Opaque", pair, trusted, settings)


def server_secret(pair: KeyPair, trusted: bytes) -> Document:
    """The Secret that the host's program starts with. ``trusted``: the CAs of tenants, PEM."""
    return _secret(SERVER_SECRET, "kubernetes.io/tls", pair, trusted, {})


def _secret(name: str, type_: str, pair: KeyPair, trusted: bytes, more: dict[str, bytes]) -> Document:
    data = {CERTIFICATE: pair.certificate, KEY: pair.key, TRUSTED: trusted} | more
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": name, "namespace": SYSTEM},
        "type": type_,
        "data": {key: base64.b64encode(value).decode() for key, value in data.items()},
    }


def _write_pem(out: Path, name: str, pair: KeyPair, trusted: bytes) -> tuple[Path, ...]:
    key, certificate, ca = out / f"{name}.key", out / f"{name}.crt", out / "ca.crt"
    write(key, pair.key, secret=True)
    write(certificate, pair.certificate, secret=False)
    write(ca, trusted, secret=False)
    return (certificate, key, ca)


def prepare(out: Path) -> None:
    """Make the folder, for its owner alone, where there is none. Raises ConfigurationError."""
    try:
        out.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as e:
        raise ConfigurationError(f"output folder {out}: {e.strerror}") from e


def write(path: Path, content: bytes, *, secret: bool) -> None:
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
