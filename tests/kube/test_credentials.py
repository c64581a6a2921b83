"""Credentials from kubeconfig files."""

import base64
from pathlib import Path

import pytest

from cloudprovider.core.errors import ConfigurationError
from cloudprovider.kube import credentials
from cloudprovider.kube.credentials import FileToken
from tests.lab.pki import Authority


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("pki"), "ca")


def kubeconfig(folder: Path, cluster: str, user: str, name: str = "config") -> str:
    path = folder / name
    path.write_text(
        f"""apiVersion: v1
kind: Config
current-context: one
clusters:
- name: c
  cluster: {{{cluster}}}
users:
- name: u
  user: {{{user}}}
contexts:
- name: one
  context: {{cluster: c, user: u, namespace: mine}}
- name: two
  context: {{cluster: c, user: u}}
"""
    )
    return str(path)


def encoded(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode()


def test_inline_certificates_leave_no_files(
    tmp_path: Path, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = authority.issue("user", common_name="user")
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    path = kubeconfig(
        tmp_path,
        f"server: https://192.0.2.1:6443/, certificate-authority-data: {encoded(authority.files.certificate)}",
        f"client-certificate-data: {encoded(pair.certificate)}, client-key-data: {encoded(pair.key)}",
    )
    for _ in range(2):  # the second time, the official loader remembers files that are gone
        loaded = credentials.load(path)
        assert loaded.server == "https://192.0.2.1:6443"
        assert loaded.namespace == "mine"
        assert loaded.authorization() == ""
        assert loaded.ssl is not None
        assert loaded.ssl.check_hostname
        assert len(loaded.ssl.get_ca_certs()) == 1
        assert list(scratch.iterdir()) == []
    assert credentials.load(path, "two").namespace == "default"


def test_token_and_plain_http(tmp_path: Path) -> None:
    loaded = credentials.from_kubeconfig(kubeconfig(tmp_path, "server: http://127.0.0.1:8001", "token: t0"))
    assert (loaded.ssl, loaded.authorization()) == (None, "Bearer t0")


def test_token_file_is_read_again(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("t1\n")
    path = kubeconfig(tmp_path, "server: http://127.0.0.1:8001", "tokenFile: token")
    assert credentials.from_kubeconfig(path).authorization() == "Bearer t1"

    now = 0.0
    token = FileToken(tmp_path / "token", clock=lambda: now)
    assert token() == "Bearer t1"
    (tmp_path / "token").write_text("t2")
    now = 59
    assert token() == "Bearer t1"
    now = 60
    assert token() == "Bearer t2"
    (tmp_path / "token").unlink()
    now = 120
    assert token() == "Bearer t2"


def test_exec_plugin(tmp_path: Path) -> None:
    plugin = tmp_path / "plugin"
    plugin.write_text(
        "#!/bin/sh\n"
        'echo \'{"apiVersion":"client.authentication.k8s.io/v1","kind":"ExecCredential","status":{"token":"x"}}\'\n'
    )
    plugin.chmod(0o755)
    user = f"exec: {{apiVersion: client.authentication.k8s.io/v1, command: {plugin}, interactiveMode: Never}}"
    path = kubeconfig(tmp_path, "server: http://127.0.0.1:8001", user)
    assert credentials.from_kubeconfig(path).authorization() == "Bearer x"


@pytest.mark.parametrize(
    ("cluster", "user", "says"),
    [
        ("server: https://h:1, certificate-authority: /no/such/file", "token: t", "/no/such/file"),
        ("server: https://h:1, certificate-authority-data: '%%%'", "token: t", "config"),
        ("server: https://h:1, certificate-authority-data: aGFsbG8=", "token: t", "certificates"),
        ("server: http://h:1, proxy-url: 'http://p:1'", "token: t", "proxy-url"),
        ("server: https://h:1", "client-certificate: /no/such/file, client-key: /no/such/key", "/no/such/file"),
        ("server: http://h:1", "exec: {apiVersion: client.authentication.k8s.io/v1, command: 'false'}", "exec plugin"),
        ("server: http://h:1", "tokenFile: nosuchfile", "nosuchfile"),
    ],
)
def test_bad_kubeconfigs_are_refused_with_the_reason(tmp_path: Path, cluster: str, user: str, says: str) -> None:
    path = kubeconfig(tmp_path, cluster, user)
    with pytest.raises(ConfigurationError, match=says):
        credentials.load(path)


def test_unknown_context_missing_and_broken_files(tmp_path: Path) -> None:
    path = kubeconfig(tmp_path, "server: http://h:1", "token: t")
    with pytest.raises(ConfigurationError, match="nowhere"):
        credentials.load(path, "nowhere")
    with pytest.raises(ConfigurationError, match="kubeconfig"):
        credentials.load(str(tmp_path / "missing"))
    for text in ("{", "[]", "", "just text"):
        (tmp_path / "broken").write_text(text)
        with pytest.raises(ConfigurationError):
            credentials.load(str(tmp_path / "broken"))


def test_in_cluster(tmp_path: Path, authority: Authority, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(credentials, "SERVICE_ACCOUNT", tmp_path)
    monkeypatch.setattr("kubernetes.config.incluster_config.SERVICE_TOKEN_FILENAME", str(tmp_path / "token"))
    monkeypatch.setattr("kubernetes.config.incluster_config.SERVICE_CERT_FILENAME", str(tmp_path / "ca.crt"))
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "fd00::1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "443")
    (tmp_path / "token").write_text("t\n")
    (tmp_path / "namespace").write_text("harvester-system")
    with pytest.raises(ConfigurationError, match="in-cluster"):
        credentials.load()
    (tmp_path / "ca.crt").write_bytes(authority.files.certificate.read_bytes())
    loaded = credentials.load()
    assert (loaded.server, loaded.namespace) == ("https://[fd00::1]:443", "harvester-system")
    assert loaded.authorization() == "Bearer t"
