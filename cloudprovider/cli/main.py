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
from pathlib import Path

from cloudprovider import __version__
from cloudprovider.cli import logs, tenantarguments
from cloudprovider.cli.arguments import parser
from cloudprovider.cli.programs import PROGRAMS, Program
from cloudprovider.cli.settings import CONFIG_FLAG, ENVIRONMENT_PREFIX, add_arguments, resolve, unknown_variables
from cloudprovider.core.errors import CloudProviderError, ConfigurationError

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
  cloudprovider tenant server-certificate bridge.example.org
  cloudprovider tenant create shop --namespace shops --node-cidr 10.0.8.0/24 --bridge bridge.example.org:8443

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
    whole = parser(argparse.ArgumentParser, prog="cloudprovider", description=DESCRIPTION, epilog=EXAMPLES)
    whole.add_argument("--version", action="version", version=f"cloudprovider {__version__}")
    commands = whole.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for program in PROGRAMS:
        _add_program(commands, program)
    _add_crds(commands)
    tenantarguments.add(commands)
    _add_takeover(commands)
    return whole


def _add_program(commands: "argparse._SubParsersAction[argparse.ArgumentParser]", program: Program) -> None:
    own = parser(
        commands.add_parser,
        program.name,
        help=program.summary,
        description=f"{program.description}\n{SETTINGS}",
        epilog=program.example,
    )
    own.add_argument(
        "action",
        nargs="?",
        choices=[action.name for action in program.actions],
        default=program.actions[0].name,
        help="; ".join(f"{action.name}: {action.help}" for action in program.actions)
        + f" (default {program.actions[0].name})",
    )
    own.add_argument("--" + CONFIG_FLAG, action="append", metavar="FILE", help="YAML file with settings")
    add_arguments(own, "settings", program.options)

    def command(parsed: argparse.Namespace) -> int:
        return run_program(program, parsed.action, vars(parsed), os.environ)

    own.set_defaults(command=command, prog=own.prog)


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
    own = parser(
        commands.add_parser,
        "crds",
        help=text,
        description="Print the CustomResourceDefinitions of LoadBalancer, IPPool, IPBlock, GuestCluster,"
        " BGPPeer and BGPAdvertisement, for the host cluster.",
        epilog="example:\n  cloudprovider crds | kubectl apply --server-side -f -\n",
    )
    own.add_argument("--write", metavar="FOLDER", type=Path, help="write one file for each instead")

    def command(parsed: argparse.Namespace) -> int:
        from cloudprovider.cli import crds  # noqa: PLC0415 - programs need no schemas

        for name, content in crds.render():
            if parsed.write:
                (parsed.write / name).write_text(content)
            else:
                print(f"---\n{content}", end="")  # noqa: T201
        return 0

    own.set_defaults(command=command, prog=own.prog)


def _add_takeover(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    own = parser(
        commands.add_parser,
        "takeover",
        help="on a Harvester host: take over from its own load balancer controller",
        description="Say what would be adopted of Harvester's own load balancer controller; with --yes record its"
        " addresses, so that\nevery one stays, and switch it off. docs/takeover.md says what comes next, and how to go"
        " back.",
    )
    own.add_argument("--yes", action="store_true", help="do it; without it nothing is changed")
    own.add_argument("--kubeconfig", default="", metavar="FILE", help="of the host cluster, as its administrator")
    own.add_argument("--context", default="", metavar="NAME", help="the kubeconfig's context")

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

    own.set_defaults(command=command, prog=own.prog)


if __name__ == "__main__":
    sys.exit(main())
