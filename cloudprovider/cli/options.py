"""The settings of each program, as flags: what they are called, what they mean, what they may be."""

import ipaddress
from collections.abc import Callable
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from cloudprovider.cli.settings import Option
from cloudprovider.core.plan import IPAddress, IPNetwork
from cloudprovider.core.translate import DEFAULT_CLASS

DEFAULT_TRUST_DOMAIN: Final = "cloudprovider.local"


def host_port(text: str) -> str:
    """ "HOST:PORT" with a name or an address (IPv6 in brackets), as gRPC takes it."""
    host, _, port = text.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    if not host or (":" in host) != bracketed or not port.isdecimal() or not 0 < int(port) < 65536:
        raise ValueError(f'"{text}" is not HOST:PORT: write it as bridge.example.org:8443, 192.0.2.1:8443, [::1]:8443')
    return text


def host_port_or_none(text: str) -> str:
    """Like :func:`host_port`, or nothing."""
    return host_port(text) if text else ""


def address_or_none(text: str) -> IPAddress | None:
    """An IP address, or nothing."""
    try:
        return ipaddress.ip_address(text) if text else None
    except ValueError:
        raise ValueError(f'"{text}" is not an IP address, such as 10.42.0.7') from None


def network(text: str) -> IPNetwork:
    """A CIDR without host bits."""
    try:
        return ipaddress.ip_network(text)
    except ValueError as e:
        raise ValueError(f'"{text}" is not a CIDR: {e}; write it as 10.42.0.0/16') from None


def file(text: str) -> Path:
    """A file that is there."""
    path = Path(text)
    if not path.is_file():
        raise ValueError(f'"{text}" is not a file')
    return path


def folder(text: str) -> Path:
    """A folder that is there."""
    path = Path(text)
    if not path.is_dir():
        raise ValueError(f'"{text}" is not a folder')
    return path


def pem(text: str) -> Path:
    """A PEM file that is there."""
    path = Path(text)
    if not path.is_file():
        raise ValueError(
            f'"{text}" is not a file: certificate, key and CA have to be there (of a Secret: tls.crt, tls.key, ca.crt)'
        )
    return path


def days(text: str) -> int:
    """A number of days, at least one."""
    if not text.isdecimal() or not 0 < int(text) <= 36500:
        raise ValueError(f'"{text}" is not a number of days from 1 to 36500')
    return int(text)


def url(text: str) -> str:
    """An HTTP URL with a host, and nothing after its path."""
    parts = urlsplit(text)
    if parts.scheme not in {"http", "https"} or not parts.netloc or parts.query or parts.fragment or "@" in text:
        raise ValueError(f'"{text}" is not a URL: write it as https://192.0.2.1:6443')
    return text


def url_or_none(text: str) -> str:
    """Like :func:`url`, or nothing."""
    return url(text) if text else ""


def url_of_node(text: str) -> str:
    """A URL in which ``{node}`` may stand for the node's name, or nothing."""
    url_or_none(text.replace("{node}", "node"))
    return text


def _count(what: str, most: int) -> Callable[[str], int]:
    """A parser of numbers from 1 to ``most``."""

    def parse(text: str) -> int:
        if not text.isdecimal() or not 0 < int(text) <= most:
            raise ValueError(f'"{text}" is not a number of {what} from 1 to {most}')
        return int(text)

    return parse


minutes, hours, sessions = _count("minutes", 1440), _count("hours", 168), _count("sessions", 10000)

LOGGING: Final = (
    Option(name="log-level", metavar="LEVEL", default="info", choices=("debug", "info", "warning", "error"),
           help="how much is logged"),
    Option(name="log-format", metavar="FORMAT", default="auto", choices=("auto", "json", "text"),
           help="auto is text on a terminal, else one JSON object a line"),
)  # fmt: skip


def _api_server(which: str) -> tuple[Option, ...]:
    return (
        Option(name="kubeconfig", metavar="FILE", default="",
               help=f"how to reach the {which} cluster's API server; without it the pod's service account, else what"
               " kubectl would take"),
        Option(name="context", metavar="NAME", default="", help="the kubeconfig's context; without it the current one"),
    )  # fmt: skip


def _endpoint(port: int) -> Option:
    return Option(name="endpoint", metavar="ADDRESS:PORT", default=f"127.0.0.1:{port}", parse=host_port,
                  help="where /livez, /readyz and /metrics are served")  # fmt: skip


def _lease(whose: str) -> Option:
    return Option(name="lease-namespace", metavar="NAMESPACE", default="cloudprovider-system",
                  help=f"where the Lease of {whose} is kept")  # fmt: skip


GUEST: Final = (
    Option(name="bridge", metavar="HOST:PORT", required=True, parse=host_port, help="the host's bridge"),
    Option(name="bridge-server-name", metavar="NAME", default="",
           help="the name in the bridge's certificate, where it is not HOST"),
    Option(name="bridge-ca", metavar="FILE", required=True, parse=pem, help="CA of the bridge's certificate, PEM"),
    Option(name="client-cert", metavar="FILE", required=True, parse=pem,
           help="this guest's certificate, PEM; read again when it changes"),
    Option(name="client-key", metavar="FILE", required=True, parse=pem, help="its key, PEM"),
    Option(name="renewed-secret", metavar="NAME", default="",
           help="the Secret, in the Lease's namespace, that keeps the certificate when it has been renewed; without it"
           " somebody else has to renew it"),
    Option(name="renewed-dir", metavar="FOLDER", parse=folder,
           help="where that Secret is mounted: of this certificate and --client-cert, the newer one is used"),
    Option(name="load-balancer-class", metavar="CLASS", default="",
           help="handle only Services with this spec.loadBalancerClass; without it those that name none, or "
           + DEFAULT_CLASS),
    _lease("the copy that leads"),
    Option(name="identity", metavar="NAME", default="", help="this copy's name there; without it the host's name"),
    *_api_server("guest"),
    _endpoint(8081),
    *LOGGING,
)  # fmt: skip

HOST: Final = (
    Option(name="bridge-address", metavar="ADDRESS:PORT", default="0.0.0.0:8443", parse=host_port,
           help="where the bridge listens for guests"),
    Option(name="tls-cert", metavar="FILE", required=True, parse=pem,
           help="the bridge's certificate, PEM; read again when it changes"),
    Option(name="tls-key", metavar="FILE", required=True, parse=pem, help="its key, PEM"),
    Option(name="tenant-ca", metavar="FILE", required=True, parse=pem, help="CA of the guests' certificates, PEM"),
    Option(name="trust-domain", metavar="NAME", default=DEFAULT_TRUST_DOMAIN,
           help="first part of the identity in guests' certificates, spiffe://NAME/ns/.../cluster/..."),
    Option(name="reserved-cidrs", metavar="CIDR", many=True, parse=network,
           help="the host cluster's pod and service ranges: no guest's node may claim an address in them"),
    Option(name="webhook-address", metavar="ADDRESS:PORT", default="", parse=host_port_or_none,
           help="where the admission webhook is served; without it none is"),
    Option(name="node-name", metavar="NAME", default="",
           help="the node that this copy runs on: when the other hosts hear that no more, the next copy leads at once"),
    Option(name="pod-address", metavar="ADDRESS", default="", parse=address_or_none,
           help="this copy's own address: while it leads, the Service of the bridge leads there; without it the Service"
           " is left alone"),
    _lease("the copy that leads"),
    Option(name="identity", metavar="NAME", default="", help="this copy's name there; without it the host's name"),
    *_api_server("host"),
    _endpoint(8082),
    *LOGGING,
)  # fmt: skip

CONSOLE: Final = (
    Option(name="api-server", metavar="URL", default="https://kubernetes.default.svc", parse=url,
           help="the host cluster's API server, which every user's token goes to"),
    Option(name="api-server-ca", metavar="FILE", parse=file,
           help="CA of its certificate, PEM; without it the system's"),
    Option(name="api-server-name", metavar="NAME", default="", help="the name in its certificate, where not the URL's"),
    Option(name="console-address", metavar="ADDRESS:PORT", default="127.0.0.1:8090", parse=host_port,
           help="where the page is served; without TLS it must be a loopback address"),
    Option(name="public-url", metavar="URL", default="", parse=url_or_none,
           help="what browsers call the page by, where a proxy stands before it"),
    Option(name="tls-cert", metavar="FILE", parse=file,
           help="the page's certificate, PEM; read again when it changes"),
    Option(name="tls-key", metavar="FILE", parse=file, help="its key, PEM"),
    Option(name="agent-metrics", metavar="URL", default="", parse=url_of_node,
           help="the agents' /metrics, {node} standing for the node's name, such as http://{node}:8083/metrics;"
           " without it no traffic is shown"),
    Option(name="idle-minutes", metavar="MINUTES", default="30", parse=minutes,
           help="a session ends so long after its last page"),
    Option(name="session-hours", metavar="HOURS", default="8", parse=hours,
           help="a session ends so long after its start"),
    Option(name="max-sessions", metavar="NUMBER", default="200", parse=sessions,
           help="people signed in at the same time"),
    _endpoint(8084),
    *LOGGING,
)  # fmt: skip

AGENT: Final = (
    Option(name="node-name", metavar="NAME", required=True, help="the host's name, as its Node object's"),
    Option(name="networks", metavar="FILE", required=True, parse=file,
           help="YAML that says by which device the host stands on each network"),
    Option(name="instance", metavar="NAME", default="default",
           help="part of the names of what is made in the kernel, so that two installations do not meet"),
    _lease("the agent that serves"),
    *_api_server("host"),
    _endpoint(8083),
    *LOGGING,
)  # fmt: skip
