"""``kubectl-lb``: found by kubectl as ``kubectl lb``.

Exit codes: 0 done, and all is fine; 1 something is not (``explain``, ``check``), or what was asked for does not exist
(``trace``: nobody answers); 2 wrong usage or kubeconfig; 3 the cluster can't be reached, or refuses.
"""

import argparse
import asyncio
import logging
import sys
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

import msgspec

from cloudprovider import __version__
from cloudprovider.cli.kubectl import commands, show
from cloudprovider.cli.kubectl.screen import Progress, Style, document
from cloudprovider.cli.kubectl.session import NothingThere, Refused, Session, opened, sentence
from cloudprovider.core.drain import Impossible
from cloudprovider.core.errors import ConfigurationError, KubeError

FINE: Final = 0
NOT_FINE: Final = 1
WRONG_USAGE: Final = 2
NO_CLUSTER: Final = 3

DESCRIPTION: Final = """\
What the load balancers are doing, on the host (from its LoadBalancer objects) or in a guest (from its Services): it
looks which of the two the cluster is.
"""
EXAMPLES: Final = """\
examples:
  kubectl lb list -A
  kubectl lb explain shop/web          # from Service to packet, and the first step that is not fine
  kubectl lb pools                     # who holds what
  kubectl lb trace 10.0.8.100:80       # who answers there, and where the packets go
  kubectl lb drain worker-2            # take a node out; --back puts it back
  kubectl lb check                     # all that an installation needs

exit codes: 0 fine; 1 something is not, or is not there; 2 wrong usage; 3 the cluster can't be reached, or refuses
"""


@dataclass(frozen=True)
class Answer:
    """What a command came to. ``text`` is for people, ``kind`` and ``items`` for programs."""

    kind: str
    items: Sequence[msgspec.Struct]
    text: Callable[[Style], str]
    code: int = FINE


Run = Callable[[Session, argparse.Namespace], Coroutine[object, object, Answer]]


def now() -> datetime:
    """This machine's clock."""
    return datetime.now(UTC)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. Returns the exit code; argparse itself ends wrong usage by SystemExit(2)."""
    parsed = build_parser().parse_args(arguments)
    logging.getLogger().addHandler(logging.NullHandler())
    try:
        return asyncio.run(_run(parsed))
    except (ConfigurationError, Refused, NothingThere, Impossible) as error:
        print(f"kubectl lb: {error}", file=sys.stderr)  # noqa: T201 - for who typed the command
        return _code(error)
    except KubeError as error:
        print(f"kubectl lb: {sentence(error, 'do that', '')}", file=sys.stderr)  # noqa: T201
        return NO_CLUSTER
    except BrokenPipeError:  # of `| head`
        sys.stderr.close()
        return FINE
    except KeyboardInterrupt:
        return 130


def _code(error: Exception) -> int:
    if isinstance(error, ConfigurationError):
        return WRONG_USAGE
    return NO_CLUSTER if isinstance(error, Refused) else NOT_FINE


async def _run(parsed: argparse.Namespace) -> int:
    progress = Progress(sys.stderr)
    given = {"kubeconfig": parsed.kubeconfig, "context": parsed.context, "namespace": parsed.namespace}
    async with opened(**given, everywhere=parsed.all_namespaces, progress=progress, clock=now) as session:
        run: Run = parsed.run
        answer = await run(session, parsed)
    for note in session.notes:
        print(f"kubectl lb: {note}", file=sys.stderr)  # noqa: T201
    print(rendered(answer, parsed.output, Style.of(sys.stdout)), end="")  # noqa: T201
    return answer.code


def rendered(answer: Answer, output: str, style: Style) -> str:
    """What is printed on standard output."""
    return document(answer.kind, answer.items, output) if output else answer.text(style)


async def _list(session: Session, parsed: argparse.Namespace) -> Answer:
    found = await commands.overview(session, asked=bool(parsed.namespace or parsed.all_namespaces))
    if not found:
        where = "" if session.everywhere else f" in the namespace {session.namespace}"
        session.notes.append(f"there is no load balancer{where}")
    host = session.side == "host"
    return Answer("LoadBalancerList", found, lambda s: show.rows(found, host=host, now=session.now, style=s))


async def _explain(session: Session, parsed: argparse.Namespace) -> Answer:
    found = await commands.explain(session, parsed.name)
    code = FINE if found.wrong is None else NOT_FINE
    return Answer("ExplanationList", [found], lambda s: show.explanation(found, s), code)


async def _pools(session: Session, parsed: argparse.Namespace) -> Answer:
    found = await commands.pools(session, parsed.names)
    if not found:
        session.notes.append("there is no pool")
    return Answer("PoolList", found, lambda s: show.pools(found, s))


async def _trace(session: Session, parsed: argparse.Namespace) -> Answer:
    found = await commands.traced(session, parsed.target)
    code = NOT_FINE if any(t.problem for t in found) else FINE
    return Answer("TraceList", found, lambda s: show.traces(found, s), code)


async def _drain(session: Session, parsed: argparse.Namespace) -> Answer:
    found = await commands.drain(session, parsed.name, back=parsed.back, dry_run=parsed.dry_run)
    return Answer("DrainList", [found], lambda _: show.drain(found, dry_run=parsed.dry_run))


async def _check(session: Session, _: argparse.Namespace) -> Answer:
    from cloudprovider.cli.kubectl.check import check  # noqa: PLC0415 - cryptography takes its time

    found = await check(session, now)
    code = NOT_FINE if any(f.verdict == "wrong" for f in found) else FINE
    return Answer("CheckList", found, lambda s: show.findings(found, s), code)


def build_parser() -> argparse.ArgumentParser:
    """The parser of the whole command line."""
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="kubectl lb", description=DESCRIPTION, epilog=EXAMPLES, formatter_class=formatter, allow_abbrev=False
    )
    parser.add_argument("--version", action="version", version=f"kubectl-lb {__version__}")
    common = _common()
    commands_ = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def add(name: str, run: Run, text: str, more: str = "") -> argparse.ArgumentParser:
        described = f"{text[0].upper()}{text[1:]}.{more}"
        made = commands_.add_parser(
            name, help=text, description=described, parents=[common], allow_abbrev=False, formatter_class=formatter
        )
        made.set_defaults(run=run)
        return made

    add("list", _list, "all load balancers that you may see", " Without -n and -A: of all namespaces, if you may.")
    name = "[NAMESPACE/]NAME"
    explain = add("explain", _explain, "each step from Service to packet, and the first that is not fine")
    explain.add_argument("name", metavar=name, help="in a guest a Service, on the host a LoadBalancer")
    pools = add("pools", _pools, "who holds which addresses, drawn")
    pools.add_argument("names", metavar="POOL", nargs="*", help="only these")
    target = "ADDRESS:PORT[/PROTOCOL]"
    trace = add("trace", _trace, "who answers at an address, by which rule, and where the packets go")
    trace.add_argument("target", metavar=target, help="as 10.0.8.100:80, 10.0.8.100:53/UDP, [fd00::1]:443")
    drain = add(
        "drain",
        _drain,
        "take a backend out of all load balancers, or put it back",
        " In a guest a node, by Kubernetes' exclude\nlabel; on the host a virtual machine, by the label that its load"
        " balancers select it by.",
    )
    drain.add_argument("name", metavar=name, help="in a guest a node, on the host a virtual machine")
    drain.add_argument("--back", action="store_true", help="put it back")
    drain.add_argument("--dry-run", action="store_true", help="say what would be done; nothing is changed")
    add("check", _check, "everything that an installation needs", " As root on a host's node: its kernel as well.")
    return parser


def _common() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False)
    group = common.add_argument_group("as kubectl's")
    group.add_argument("-n", "--namespace", default="", help="one namespace")
    group.add_argument("-A", "--all-namespaces", action="store_true", help="all namespaces")
    group.add_argument("-o", "--output", choices=("json", "yaml"), default="", help="for programs")
    group.add_argument("--kubeconfig", default="", metavar="FILE", help="how to reach the cluster")
    group.add_argument("--context", default="", metavar="NAME", help="which of the kubeconfig's clusters")
    return common


if __name__ == "__main__":
    sys.exit(main())
