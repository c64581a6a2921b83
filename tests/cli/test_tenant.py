"""Certificates for tenants and the bridge: valid, of the right names, and readable by nobody else."""

import base64
import stat
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml
from cryptography import x509
from cryptography.x509.verification import PolicyBuilder, Store

from cloudprovider.cli.main import main
from cloudprovider.core.api.guestcluster import GuestCluster


def issue(tmp_path: Path, *more: str, name: str = "shop") -> int:
    return main(
        [
            *("tenant", "issue", name, "--namespace", "shops", "--node-cidr", "192.0.2.0/24"),
            *("--bridge", "bridge.example.org:8443", "--ca-dir", str(tmp_path / "ca"), "--out", str(tmp_path), *more),
        ]
    )


def server(tmp_path: Path, hosts: Sequence[str], *more: str) -> int:
    return main(
        ["tenant", "server-certificate", *hosts, "--ca-dir", str(tmp_path / "ca"), "--out", str(tmp_path), *more]
    )


def secret(path: Path) -> dict[str, bytes]:
    (document,) = (d for d in yaml.safe_load_all(path.read_text()) if d["kind"] == "Secret")
    assert document["metadata"]["namespace"] == "cloudprovider-system"
    return {key: base64.b64decode(value) for key, value in document["data"].items()}


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_tenants_secret_verifies_against_the_ca(tmp_path: Path) -> None:
    assert issue(tmp_path) == 0
    data = secret(tmp_path / "shop.guest.yaml")
    assert data["ca.crt"] == (tmp_path / "ca" / "ca.crt").read_bytes()
    assert yaml.safe_load(data["config.yaml"]) == {"bridge": "bridge.example.org:8443"}
    leaf = x509.load_pem_x509_certificate(data["tls.crt"])
    verifier = PolicyBuilder().store(Store([x509.load_pem_x509_certificate(data["ca.crt"])])).build_client_verifier()
    verified = verifier.verify(leaf, [])
    assert verified.subjects is not None
    (name,) = verified.subjects
    assert name.value == "spiffe://cloudprovider.local/ns/shops/cluster/shop"


def test_openssl_agrees(tmp_path: Path) -> None:
    """Another implementation than the one that made them."""
    assert issue(tmp_path, "--pem") == 0
    assert server(tmp_path, ["bridge.example.org", "192.0.2.1"], "--pem") == 0
    for certificate, purpose, more in (
        ("shop.crt", "sslclient", ()),
        ("bridge.crt", "sslserver", ("-verify_hostname", "bridge.example.org")),
        ("bridge.crt", "sslserver", ("-verify_ip", "192.0.2.1")),
    ):
        assert openssl_verifies(tmp_path, certificate, purpose, *more)
    assert not openssl_verifies(tmp_path, "shop.crt", "sslserver")
    assert not openssl_verifies(tmp_path, "bridge.crt", "sslserver", "-verify_hostname", "other.example.org")


def openssl_verifies(tmp_path: Path, certificate: str, purpose: str, *more: str) -> bool:
    command = ["openssl", "verify", "-x509_strict", "-purpose", purpose, *more]
    files = ["-CAfile", str(tmp_path / "ca.crt"), str(tmp_path / certificate)]
    return subprocess.run([*command, *files], check=False, timeout=20, capture_output=True).returncode == 0


def test_what_is_secret_only_the_owner_reads(tmp_path: Path) -> None:
    assert issue(tmp_path) == 0
    assert server(tmp_path, ["bridge.example.org"]) == 0
    assert mode(tmp_path / "ca") == 0o700
    assert mode(tmp_path / "ca" / "ca.key") == 0o600
    assert mode(tmp_path / "shop.guest.yaml") == 0o600
    assert mode(tmp_path / "bridge.host.yaml") == 0o600
    assert issue(tmp_path, "--pem") == 0
    assert mode(tmp_path / "shop.key") == 0o600


def test_the_guest_cluster_is_what_the_host_reads(tmp_path: Path) -> None:
    assert (
        issue(tmp_path, "--network", "default/vlan1", "--pool", "a", "--pool", "b", "--node-cidr", "2001:db8::/64") == 0
    )
    document: dict[str, Any] = yaml.safe_load((tmp_path / "shop.host.yaml").read_text())
    guest_cluster = msgspec.convert(document, GuestCluster)
    assert guest_cluster.key == ("shops", "shop")
    assert guest_cluster.spec.node_cidrs == ["192.0.2.0/24", "2001:db8::/64"]
    assert (guest_cluster.spec.networks, guest_cluster.spec.pools) == (["default/vlan1"], ["a", "b"])
    assert "PRIVATE KEY" not in (tmp_path / "shop.host.yaml").read_text()


def test_the_ca_is_made_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert issue(tmp_path) == 0
    assert "a new CA" in capsys.readouterr().out
    before = (tmp_path / "ca" / "ca.key").read_bytes()
    assert issue(tmp_path, name="other") == 0
    out = capsys.readouterr().out
    assert "a new CA" not in out
    assert f"kubectl apply -f {tmp_path}/other.guest.yaml" in out
    assert (tmp_path / "ca" / "ca.key").read_bytes() == before


def _half(ca: Path) -> None:
    (ca / "ca.crt").unlink()


def _open(ca: Path) -> None:
    (ca / "ca.key").chmod(0o644)


def _garbage(ca: Path) -> None:
    (ca / "ca.crt").write_text("nothing")


@pytest.mark.parametrize(
    ("damage", "says"),
    [(_half, "ca.crt is missing"), (_open, "chmod 600"), (_garbage, "certificate or key can't be read")],
)
def test_a_damaged_ca_is_refused_and_left_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: Any, says: str
) -> None:
    assert issue(tmp_path) == 0
    damage(tmp_path / "ca")
    key = (tmp_path / "ca" / "ca.key").read_bytes()
    capsys.readouterr()
    assert issue(tmp_path, name="other") == 2
    assert says in capsys.readouterr().err
    assert (tmp_path / "ca" / "ca.key").read_bytes() == key
    assert not (tmp_path / "other.guest.yaml").exists()


@pytest.mark.parametrize(
    ("name", "more", "says"),
    [
        ("Shop!", (), "cluster 'Shop!' is not allowed"),
        ("shop", ("--trust-domain", "a/b"), "trust domain 'a/b' is not allowed"),
        ("shop", ("--days", "36500"), "shorter validity"),
    ],
)
def test_what_can_not_be_issued_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, more: tuple[str, ...], says: str
) -> None:
    assert issue(tmp_path, *more, name=name) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert says in line


@pytest.mark.parametrize("more", [("--bridge", "nowhere"), ("--node-cidr", "192.0.2.1/24"), ("--days", "0")])
def test_malformed_flags_are_explained(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], more: tuple[str, ...]
) -> None:
    with pytest.raises(SystemExit) as ended:
        issue(tmp_path, *more)
    assert ended.value.code == 2
    assert f'"{more[1]}" is not' in capsys.readouterr().err
