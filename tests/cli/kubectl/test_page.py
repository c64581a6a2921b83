"""docs/kubectl-lb.md shows what is really printed."""

import re
import shlex
from pathlib import Path

import msgspec
import pytest

from cloudprovider.cli.kubectl import show
from cloudprovider.cli.kubectl.main import build_parser
from cloudprovider.cli.kubectl.screen import Style
from cloudprovider.core.installation import Finding
from cloudprovider.core.overview import Row
from cloudprovider.core.poolmap import PoolMap
from cloudprovider.core.steps import Explanation, Step
from cloudprovider.core.trace import Trace, TracedBackend, Traffic
from tests.cli.kubectl import scene
from tests.cli.kubectl.situations import NO_POOL

PAGE = Path(__file__).parents[3] / "docs" / "kubectl-lb.md"
WIDTH = 110
_BLOCK = re.compile(r"```\n\$ kubectl lb (?P<arguments>[^\n]*)\n(?P<printed>.*?)```", re.DOTALL)

CHECKED = [
    Finding(name="API server", verdict="ok", message="v1.34.1, answers in 4 ms; a host: it has load balancer objects"),
    Finding(name="clock", verdict="ok", message="in step"),
    *(
        Finding(name=f"CRD {kind}", verdict="ok", message="there, of this version")
        for kind in ("LoadBalancer", "IPPool", "IPBlock", "GuestCluster", "BGPPeer", "BGPAdvertisement")
    ),
    Finding(name="permissions", verdict="ok", message="admin may do all that kubectl lb needs"),
    Finding(
        name="certificate of the bridge",
        verdict="warning",
        message="valid until 2026-01-20, 19 days",
        todo="cloudprovider tenant server-certificate NAMES; the host's log says why it did not renew it",
    ),
    Finding(name="cloudprovider-host", verdict="ok", message="cloudprovider-host runs on host-1"),
    Finding(
        name="networks",
        verdict="wrong",
        message="no agent stands on default/vlan9, which the pool lab is for",
        todo="add it to the agents' files",
    ),
    Finding(name="BGP router tor-a", verdict="ok", message="3 hosts, 212 addresses said"),
    Finding(name="guest shops/shop", verdict="ok", message="heard 12 s ago, version 0.1.0"),
]


def guest() -> scene.Scene:
    return scene.guest(scene.service("web"), scene.service("api", reason="NoPoolMatches", message=NO_POOL, address=""))


async def printed(arguments: str, side: str) -> str:
    """What a command of the page prints; ``check`` needs a real cluster, and is shown with findings as these."""
    if arguments == "check":
        return show.findings(CHECKED, Style(WIDTH))
    found = guest() if side == "In a guest" else scene.host()
    return (await found.run(*shlex.split(arguments), width=WIDTH))[0]


async def rewritten(page: str) -> str:
    """The page with what is really printed."""
    parts = []
    at = 0
    for block in _BLOCK.finditer(page):
        side = re.findall(r"^## (.*)$", page[: block.start()], re.MULTILINE)[-1]
        text = await printed(block["arguments"], side)
        parts += [page[at : block.start()], f"```\n$ kubectl lb {block['arguments']}\n{text}```"]
        at = block.end()
    return "".join((*parts, page[at:]))


async def test_what_the_page_shows_is_what_is_printed() -> None:
    page = PAGE.read_text()
    assert page == await rewritten(page)
    assert len(_BLOCK.findall(page)) >= 10


def test_the_page_names_every_command() -> None:
    page = PAGE.read_text()
    (action,) = (a for a in build_parser()._actions if a.dest == "==SUPPRESS==" or a.choices)
    assert action.choices is not None
    assert [name for name in action.choices if f"`{name}" not in page] == []


@pytest.mark.parametrize(
    ("kind", "types"),
    [
        ("LoadBalancerList", (Row,)),
        ("ExplanationList", (Explanation, Step)),
        ("PoolList", (PoolMap,)),
        ("TraceList", (Trace, TracedBackend, Traffic)),
        ("CheckList", (Finding,)),
    ],
)
def test_the_page_names_every_field(kind: str, types: tuple[type[msgspec.Struct], ...]) -> None:
    (line,) = (line for line in PAGE.read_text().splitlines() if line.startswith(f"| `{kind}`"))
    words = set(re.findall(r"\w+", line))
    assert {name for each in types for name in each.__struct_encode_fields__} - words == set()
