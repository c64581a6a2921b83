"""What the console is told."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class ConsoleConfig:
    """Settings of the console.

    ``api_server`` is the API server's URL, ``api_server_ca`` who may have signed its certificate (None: the system's
    authorities), ``api_server_name`` the name in it, where that is not the URL's. There are no credentials: each user
    brings a token.

    ``console_address`` is "ADDRESS:PORT" to listen on, with ``tls_cert`` and ``tls_key``; without these it must be a
    loopback address, for a proxy beside it. ``public_url`` is what browsers call it by, where that differs from what
    they send as Host. ``agent_metrics`` is the URL of the agents' metrics, ``{node}`` in it stands for the node's name;
    empty: no traffic is shown. A session ends ``idle_minutes`` after its last page and ``session_hours`` after its
    start; there are at most ``max_sessions``. ``endpoint`` is "ADDRESS:PORT" of the health endpoint.
    """

    api_server: str = "https://kubernetes.default.svc"
    api_server_ca: Path | None = None
    api_server_name: str = ""
    console_address: str = "127.0.0.1:8090"
    public_url: str = ""
    tls_cert: Path | None = None
    tls_key: Path | None = None
    agent_metrics: str = ""
    idle_minutes: int = 30
    session_hours: int = 8
    max_sessions: int = 200
    endpoint: str = "127.0.0.1:8084"
