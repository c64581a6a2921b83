"""``cloudprovider``: one command, a sub-command for each program and for what operators do once.

Exit codes: 0 done; 1 it failed while running; 2 wrong usage or settings, with one line on standard error that says
what is wrong and what to do.
"""

import argparse
import asyncio
import logging
import os
import signal
import sys
from collections.abc import Callable, Coroutine, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from cloudprovider import __version__
from cloudprovider.cli import logs
from cloudprovider.cli.options import DEFAULT_TRUST_DOMAIN, days, host_port, network
from cloudprovider.cli.programs import PROGRAMS, Program
from cloudprovider.cli.settings import CONFIG_FLAG, ENVIRONMENT_PREFIX, add_arguments, resolve, unknown_variables
from cloudprovider.core.errors import CloudProviderError, ConfigurationError

if TYPE_CHECKING:
    from cloudprovider.cli import tenant

T = TypeVar("T")

log = logging.getLogger(__name__)

Command = Callable[[argparse.Namespace], int]

DESCRIPTION = """\
Load balancers for Kubernetes clusters that run in virtual machines on Harvester.

  guest cluster            host (Harvester) cluster
  cloudprovider guest  ->  cloudprovider host  ->  cloudprovider agent (on each host node)

A Service of type LoadBalancer in a guest gets an address of the host's network, and the agents forward its traffic.
"""
EXAMPLES = """\
first steps, as the host's operator:
  cloudprovider crds | kubectl apply --server-side -f -
  cloudprovider tenant server-certificate bridge.example.org --ca-dir ~/tenants
  cloudprovider tenant issue shop --namespace shop --node-cidr 10.0.8.0/24 --bridge bridge.example.org:8443 \\
      --ca-dir ~/tenants

cloudprovider COMMAND --help explains a command and its settings.
"""
SETTINGS = f"""\
Every setting is a flag, or a variable of the environment ({ENVIRONMENT_PREFIX}NODE_NAME for --node-name), or a line in
the YAML file given by --config (node-name: host-1); where several are given, they win in this order.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line. Returns the exit code; argparse itself ends wrong usage by SystemExit(2)."""
    parsed = build_parser().parse_args(arguments)
    command: Command = parsed.command
    try:
        return command(parsed)
    except ConfigurationError as e:
        print(f"{parsed.prog}: {e}", file=sys.stderr)  # noqa: T201 - not a log: for who typed the command
        return 2


def build_parser() -> argparse.ArgumentParser:
    """The parser of the whole command line."""
    parser = _parser(argparse.ArgumentParser, prog="cloudprovider", description=DESCRIPTION, epilog=EXAMPLES)
    parser.add_argument("--version", action="version", version=f"cloudprovider {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for program in PROGRAMS:
        _add_program(commands, program)
    _add_crds(commands)
    _add_tenant(commands)
    _add_takeover(commands)
    return parser


def _add_program(commands: "argparse._SubParsersAction[argparse.ArgumentParser]", program: Program) -> None:
    parser = _parser(
        commands.add_parser,
        program.name,
        help=program.summary,
        description=f"{program.description}\n{SETTINGS}",
        epilog=program.example,
    )
    parser.add_argument(
        "action",
        nargs="?",
        choices=[action.name for action in program.actions],
        default=program.actions[0].name,
        help="; ".join(f"{action.name}: {action.help}" for action in program.actions)
        + f" (default {program.actions[0].name})",
    )
    parser.add_argument("--" + CONFIG_FLAG, action="append", metavar="FILE", help="YAML file with settings")
    add_arguments(parser, "settings", program.options)

    def command(parsed: argparse.Namespace) -> int:
        return run_program(program, parsed.action, vars(parsed), os.environ)

    parser.set_defaults(command=command, prog=parser.prog)


def run_program(
    program: Program, action: str, flags: Mapping[str, list[str] | None], environment: Mapping[str, str]
) -> int:
    """Settle the settings, then run until done, or until SIGTERM or SIGINT. Raises ConfigurationError."""
    settings = resolve(program.options, flags, environment)
    logs.setup(settings["log_level"], settings["log_format"])
    for sentence in unknown_variables(program.options, environment):
        log.warning("Unknown variable", extra={"detail": sentence})
    (start,) = (a.start for a in program.actions if a.name == action)
    try:
        asyncio.run(_until_signal(start(settings)))
    except ConfigurationError:
        raise
    except CloudProviderError as e:
        log.error("The program can't go on", extra={"error": str(e), "kind": type(e).__name__})  # noqa: TRY400
        return 1
    except Exception:
        log.exception("The program has failed")
        return 1
    return 0


async def _until_signal(program: Coroutine[object, object, None]) -> None:
    """Run ``program``; the first SIGTERM or SIGINT cancels it, so that it can clean up, the second kills it."""
    task = asyncio.ensure_future(program)
    loop = asyncio.get_running_loop()
    signals = (signal.SIGTERM, signal.SIGINT)
    stopping = False

    def stop(number: signal.Signals) -> None:
        nonlocal stopping
        stopping = True
        log.info("Stopping", extra={"signal": number.name})
        for each in signals:
            loop.remove_signal_handler(each)
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        task.cancel()

    for number in signals:
        loop.add_signal_handler(number, stop, number)
    try:
        await task
    except asyncio.CancelledError:
        if not stopping:
            raise


def _add_crds(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    text = "print the CustomResourceDefinitions"
    parser = _parser(
        commands.add_parser,
        "crds",
        help=text,
        description="Print the CustomResourceDefinitions of LoadBalancer, IPPool, IPBlock and GuestCluster, for the"
        " host cluster.",
        epilog="example:\n  cloudprovider crds | kubectl apply --server-side -f -\n",
    )
    parser.add_argument("--write", metavar="FOLDER", type=Path, help="write one file for each instead")

    def command(parsed: argparse.Namespace) -> int:
        from cloudprovider.cli import crds  # noqa: PLC0415 - programs need no schemas

        for name, content in crds.render():
            if parsed.write:
                (parsed.write / name).write_text(content)
            else:
                print(f"---\n{content}", end="")  # noqa: T201
        return 0

    parser.set_defaults(command=command, prog=parser.prog)


def _add_tenant(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    text = "issue certificates: a guest cluster's, and the bridge's own"
    tenant = _parser(
        commands.add_parser,
        "tenant",
        help=text,
        description=f"Without cert-manager, {text}.\n\nThe CA is made in --ca-dir when it is not there yet: keep that"
        " folder safe, whoever has it\ncan be any guest cluster.",
    )
    actions = tenant.add_subparsers(title="commands", metavar="COMMAND", required=True)

    issue = _parser(
        actions.add_parser,
        "issue",
        help="a guest cluster's certificate, with what to apply on the host and in the guest",
        description="Issue the certificate of a guest cluster, and write\n"
        "  NAME.host.yaml   its GuestCluster object, to apply on the host\n"
        "  NAME.guest.yaml  the Secret with certificate, key and the bridge's address, to apply in the guest",
        epilog="example:\n  cloudprovider tenant issue shop --namespace shop --node-cidr 10.0.8.0/24 \\\n"
        "      --bridge bridge.example.org:8443 --ca-dir ~/tenants --out ~/tenants/shop\n",
    )
    issue.add_argument("name", metavar="NAME", help="the guest cluster's name, as in its pools' scopes")
    issue.add_argument("--namespace", required=True, help="host namespace of its load balancers (and machines)")
    issue.add_argument(
        "--bridge", required=True, type=_type(host_port), metavar="HOST:PORT", help="where the guest reaches the bridge"
    )
    issue.add_argument(
        "--node-cidr",
        required=True,
        action="append",
        type=_type(network),
        metavar="CIDR",
        help="where its nodes' addresses lie; may be given several times",
    )
    issue.add_argument("--network", action="append", default=[], help="allow only pools of this network; several times")
    issue.add_argument("--pool", action="append", default=[], help="allow only this pool; several times")
    issue.add_argument(
        "--trust-domain", default=DEFAULT_TRUST_DOMAIN, help="as the host program's (default %(default)s)"
    )
    _add_issuing(issue)
    issue.set_defaults(command=_tenant_issue, prog=issue.prog)

    server = _parser(
        actions.add_parser,
        "server-certificate",
        help="the bridge's certificate, as a Secret to apply on the host",
        description="Issue the bridge's certificate, and write bridge.host.yaml, a Secret to apply on the host.",
        epilog="example:\n  cloudprovider tenant server-certificate bridge.example.org 192.0.2.1 --ca-dir ~/tenants\n",
    )
    server.add_argument("hosts", nargs="+", metavar="HOST", help="names and addresses that guests reach the bridge by")
    _add_issuing(server)
    server.set_defaults(command=_tenant_server, prog=server.prog)


def _add_takeover(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = _parser(
        commands.add_parser,
        "takeover",
        help="on a Harvester host: take over from its own load balancer controller",
        description="Say what would be adopted of Harvester's own load balancer controller; with --yes record its"
        " addresses, so that\nevery one stays, and switch it off. docs/takeover.md says what comes next, and how to go"
        " back.",
    )
    parser.add_argument("--yes", action="store_true", help="do it; without it nothing is changed")
    parser.add_argument("--kubeconfig", default="", metavar="FILE", help="of the host cluster, as its administrator")
    parser.add_argument("--context", default="", metavar="NAME", help="the kubeconfig's context")

    def command(parsed: argparse.Namespace) -> int:
        from cloudprovider.cli import takeover  # noqa: PLC0415

        try:
            asyncio.run(takeover.run(parsed.kubeconfig, parsed.context, yes=parsed.yes, tell=print))
        except ConfigurationError:
            raise
        except CloudProviderError as e:
            print(f"{parsed.prog}: {e}", file=sys.stderr)  # noqa: T201
            return 1
        return 0

    parser.set_defaults(command=command, prog=parser.prog)


def _add_issuing(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--ca-dir", required=True, type=Path, metavar="FOLDER", help="the CA: ca.crt and ca.key")
    parser.add_argument("--out", type=Path, default=Path(), metavar="FOLDER", help="where to write (default: here)")
    parser.add_argument("--days", type=_type(days), default=365, help="how long it is valid (default %(default)s)")
    parser.add_argument("--pem", action="store_true", help="write certificate, key and CA as PEM files, not a Secret")


def _tenant_issue(parsed: argparse.Namespace) -> int:
    from cloudprovider.cli import tenant  # noqa: PLC0415 - cryptography takes its time
    from cloudprovider.core.exchange import Tenant  # noqa: PLC0415

    written = tenant.issue(
        Tenant(parsed.namespace, parsed.name),
        tenant.TenantLimits(
            node_cidrs=[str(cidr) for cidr in parsed.node_cidr], networks=parsed.network, pools=parsed.pool
        ),
        ca_folder=parsed.ca_dir,
        out=parsed.out,
        bridge=parsed.bridge,
        trust_domain=parsed.trust_domain,
        validity=timedelta(days=parsed.days),
        now=datetime.now(UTC),
        pem=parsed.pem,
    )
    return _tell(written, parsed)


def _tenant_server(parsed: argparse.Namespace) -> int:
    from cloudprovider.cli import tenant  # noqa: PLC0415

    written = tenant.issue_bridge(
        parsed.hosts,
        ca_folder=parsed.ca_dir,
        out=parsed.out,
        validity=timedelta(days=parsed.days),
        now=datetime.now(UTC),
        pem=parsed.pem,
    )
    return _tell(written, parsed)


def _tell(written: "tenant.Written", parsed: argparse.Namespace) -> int:
    lines = [f"a new CA is in {parsed.ca_dir}: keep it safe"] if written.ca_is_new else []
    lines += [f"on the host:  kubectl apply -f {path}" for path in written.host]
    lines += [f"in the guest: kubectl apply -f {path}" for path in written.guest]
    lines += [f"written: {path}" for path in written.pem]
    print("\n".join(lines))  # noqa: T201
    return 0


def _type(parse: Callable[[str], T]) -> Callable[[str], T]:
    """``parse`` for argparse, which shows the message of no error but its own."""

    def convert(text: str) -> T:
        try:
            return parse(text)
        except ValueError as e:
            raise argparse.ArgumentTypeError(str(e)) from e

    return convert


def _parser(make: Callable[..., argparse.ArgumentParser], *arguments: str, **keywords: str) -> argparse.ArgumentParser:
    return make(
        *arguments,
        formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(prog, max_help_position=32, width=110),
        allow_abbrev=False,
        **keywords,
    )


if __name__ == "__main__":
    sys.exit(main())
