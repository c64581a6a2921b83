"""The four programs as the command line knows them: purpose, settings, and how to start them.

Each is imported only when it is started: a guest needs no netlink, an agent no gRPC.
"""

from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Final, TypeVar

from cloudprovider.cli import options
from cloudprovider.cli.settings import Option

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    from cloudprovider.agent.config import AgentConfig

T = TypeVar("T", bound="DataclassInstance")

Settings = Mapping[str, Any]
Start = Callable[[Settings], Coroutine[object, object, None]]


@dataclass(frozen=True)
class Action:
    """Something a program does. ``start`` raises ConfigurationError for settings that can't work."""

    name: str
    help: str
    start: Start


@dataclass(frozen=True, kw_only=True)
class Program:
    """A sub-command that runs a program; its first action is the default."""

    name: str
    summary: str
    description: str
    example: str
    options: tuple[Option, ...]
    actions: tuple[Action, ...]


def _guest(settings: Settings) -> Coroutine[object, object, None]:
    from cloudprovider.guest.config import GuestConfig  # noqa: PLC0415
    from cloudprovider.guest.program import run  # noqa: PLC0415

    return run(_config(GuestConfig, settings))


def _host(settings: Settings) -> Coroutine[object, object, None]:
    from cloudprovider.host.config import HostConfig  # noqa: PLC0415
    from cloudprovider.host.program import run  # noqa: PLC0415

    return run(_config(HostConfig, settings))


def _agent(settings: Settings) -> Coroutine[object, object, None]:
    from cloudprovider.agent.program import run  # noqa: PLC0415

    return run(_agent_config(settings))


def _agent_leave(settings: Settings) -> Coroutine[object, object, None]:
    from cloudprovider.agent.program import leave  # noqa: PLC0415

    return leave(_agent_config(settings))


def _console(settings: Settings) -> Coroutine[object, object, None]:
    from cloudprovider.console.config import ConsoleConfig  # noqa: PLC0415
    from cloudprovider.console.program import run  # noqa: PLC0415

    return run(_config(ConsoleConfig, settings))


def _agent_config(settings: Settings) -> "AgentConfig":
    from cloudprovider.agent.config import AgentConfig, read_networks  # noqa: PLC0415

    changed = {"networks": read_networks(settings["networks"]), "namespace": settings["lease_namespace"]}
    return _config(AgentConfig, {**settings, **changed})


def _config(type_: type[T], settings: Settings) -> T:
    """A program's configuration: every field is a setting of the same name."""
    return type_(**{field.name: settings[field.name] for field in fields(type_)})


GUEST: Final = Program(
    name="guest",
    summary="in a guest cluster: give Services of type LoadBalancer their addresses",
    description="""\
Runs in a guest cluster (or anywhere that reaches its API server). It watches Services of type LoadBalancer and the
nodes, asks the host's bridge for an address for each, and writes it into the Service's status. What goes wrong stands
in the Service's events and conditions: kubectl describe service NAME.
""",
    example="""\
example:
  cloudprovider guest --kubeconfig guest.yaml --bridge bridge.example.org:8443 \\
      --bridge-ca ca.crt --client-cert shop.crt --client-key shop.key
""",
    options=options.GUEST,
    actions=(Action("run", "watch and serve until stopped", _guest),),
)

HOST: Final = Program(
    name="host",
    summary="in the host cluster: the bridge for guests, and the addresses of pools",
    description="""\
Runs once in the host (Harvester) cluster. Guests call its bridge (gRPC, mutual TLS); it keeps a LoadBalancer object
for each of their Services, and gives addresses out of IPPools to these and to the load balancers of virtual machines.
What goes wrong stands in the objects' conditions: kubectl describe lb NAME.
""",
    example="""\
example:
  cloudprovider host --kubeconfig host.yaml --bridge-address 0.0.0.0:8443 \\
      --tls-cert bridge.crt --tls-key bridge.key --tenant-ca ca.crt --reserved-cidrs 10.52.0.0/16,10.53.0.0/16
""",
    options=options.HOST,
    actions=(Action("run", "serve until stopped", _host),),
)

AGENT: Final = Program(
    name="agent",
    summary="on each host node: bring the addresses up and forward their traffic",
    description="""\
Runs as root on each node of the host cluster. It makes a network namespace for each network, brings the addresses up
in it that fall to this node, answers for them on the LAN, and forwards by nftables. When it is stopped, forwarding
goes on, and the next start takes over without cutting a connection; "leave" removes all that it has made here.
""",
    example="""\
examples:
  cloudprovider agent --kubeconfig host.yaml --node-name host-1 --networks networks.yaml
  cloudprovider agent leave --kubeconfig host.yaml --node-name host-1 --networks networks.yaml

networks.yaml:
  networks:
  - name: ""                   # the management network; others as "namespace/name"
    device: mgmt-br            # the host's bridge on it
    address: 10.0.0.9/24       # an address of the agent's own there
    gateway: 10.0.0.1
""",
    options=options.AGENT,
    actions=(
        Action("run", "forward until stopped", _agent),
        Action("leave", "remove all that this agent has made on this node", _agent_leave),
    ),
)

CONSOLE: Final = Program(
    name="console",
    summary="for people: the web page of load balancers and pools",
    description="""\
Serves the page "Networks > Load Balancers". People sign in with a Kubernetes token of the host cluster, and see and
change what they may there: every request to the API server is made with the user's own token, and the console has no
rights of its own. Sessions are kept in memory, so run one copy.
""",
    example="""\
examples:
  cloudprovider console --api-server https://192.0.2.1:6443 --api-server-ca ca.crt
  cloudprovider console --api-server-ca /etc/cloudprovider/api/ca.crt --console-address 0.0.0.0:8443 \\
      --tls-cert tls.crt --tls-key tls.key --agent-metrics http://{node}:8083/metrics
""",
    options=options.CONSOLE,
    actions=(Action("run", "serve until stopped", _console),),
)

PROGRAMS: Final = (GUEST, HOST, AGENT, CONSOLE)
