"""What each command prints for people."""

from collections.abc import Sequence
from datetime import datetime
from typing import Final

from cloudprovider.cli.kubectl.screen import Style, age, cut, indented, table
from cloudprovider.core.drain import Drain
from cloudprovider.core.installation import Finding
from cloudprovider.core.overview import Row
from cloudprovider.core.poolmap import CONFLICT, FREE, RESERVED, PoolMap
from cloudprovider.core.steps import Explanation, Step
from cloudprovider.core.trace import Trace

_MARKS: Final = {
    "ok": ("ok", "green"),
    "wrong": ("WRONG", "red"),
    "warning": ("warn", "yellow"),
    "waiting": ("wait", "yellow"),
    "unknown": ("?", "yellow"),
}
_TITLE: Final = 22
_INDENT: Final = 9 + _TITLE
_HOLDERS: Final = 12
"""So many holders of a pool are named; -o json has all."""
_BAR: Final = 40


def rows(found: Sequence[Row], *, host: bool, now: datetime, style: Style) -> str:
    """The table of ``list``."""
    if not found:
        return ""
    headers = ["NAMESPACE", "NAME", "READY", "HEALTHY", "ADDRESS", "PORTS", "AGE", "WORKLOAD", "SERVICE", "WHY"]
    lines = [
        [
            row.namespace,
            row.name,
            row.reason or row.ready,
            "-" if row.healthy is None else f"{row.healthy}/{row.backends}",
            ",".join(row.addresses) or "<none>",
            ",".join(f"{x.port}/{x.protocol}" for x in row.listeners) or "-",
            age(row.created, now),
            row.workload,
            row.service or "-",
            row.message,
        ]
        for row in found
    ]
    if not host:  # a Service stands for itself there
        headers = [*headers[:7], headers[9]]
        lines = [[*line[:7], line[9]] for line in lines]
    return table(headers, lines, style)


def explanation(found: Explanation, style: Style) -> str:
    """The steps, and the first that is not fine marked."""
    lines = [f"{found.kind} {found.namespace}/{found.name}\n\n"]
    lines += [_step(step, first=step.name == found.wrong, style=style) for step in found.steps]
    if found.wrong is None and any(s.state == "unknown" for s in found.steps):
        lines.append("\nNothing wrong is seen; what is marked ? can't be seen by you.\n")
    elif found.wrong is None:
        lines.append("\nAll is fine.\n")
    else:
        step = next(s for s in found.steps if s.name == found.wrong)
        word = "The first step that is not fine" if step.state == "wrong" else "It waits at"
        reason = f" ({step.reason})" if step.reason else ""
        lines.append(f"\n{word}: {step.title}{reason}.\n")
    return "".join(lines)


def _step(step: Step, *, first: bool, style: Style) -> str:
    mark, color = _MARKS[step.state]
    line = f"{'>' if first else ' '} {style.paint(mark.ljust(5), color)}  {step.title.ljust(_TITLE)}"
    line = (line + indented(step.message, _INDENT, style)).rstrip() + "\n"
    if step.todo and (first or step.state == "wrong"):
        line += " " * _INDENT + indented(f"do: {step.todo}", _INDENT, style) + "\n"
    return line


def pools(found: Sequence[PoolMap], style: Style) -> str:
    """Each pool drawn."""
    return "\n".join(_pool(each, style) for each in found)


def _pool(pool: PoolMap, style: Style) -> str:
    network = f"network {pool.network}" if pool.network else "management network"
    if pool.state == "Wrong":
        state = style.paint("Wrong", "red")
        return f"{pool.name}   {', '.join(pool.ranges)}   {network}   {state}\n  {pool.message}\n"
    used = pool.total - pool.free
    percent = 100 * used // pool.total if pool.total else 100
    color = {"Ok": "green", "NearlyFull": "yellow", "Full": "red"}[pool.state]
    ranges = ", ".join(pool.ranges[:4]) + (f" and {len(pool.ranges) - 4} more" if len(pool.ranges) > 4 else "")
    state = "" if pool.state == "Ok" else f"   {style.paint(pool.state, color)}"
    bar = style.paint("#" * (_BAR * percent // 100), color) + "." * (_BAR - _BAR * percent // 100)
    lines = [cut(f"{pool.name}   {ranges}   {network}", style.width)]
    lines.append(f"  [{bar}] {percent} % taken, {_number(pool.free)} of {_number(pool.total)} free{state}")
    wide = max((len(row.first) for row in pool.rows), default=0)
    lines += [cut(f"  {row.first.ljust(wide)}  {row.cells}", style.width) for row in pool.rows]
    if pool.cell > 1:
        lines.append(f"  each cell is {pool.cell} addresses: {FREE} all free, 1-9 tenths taken, # all taken")
    elif not pool.rows and pool.total:
        lines.append("  too many addresses to draw")
    marked = pool.cell == 1
    for holder in pool.holders[:_HOLDERS]:
        lines.append(f"  {holder.mark if marked else '-'} {str(holder.addresses).rjust(5)}  {holder.name}")
    if len(pool.holders) > _HOLDERS:
        rest = pool.holders[_HOLDERS:]
        lines.append(f"    {str(sum(h.addresses for h in rest)).rjust(5)}  {len(rest)} more")
    if pool.reserved:
        lines.append(
            f"  {RESERVED if marked else '-'} {str(pool.reserved).rjust(5)}  reserved, free for their owners alone"
        )
    if pool.conflicts:
        lines.append(
            f"  {CONFLICT if marked else '-'} {str(pool.conflicts).rjust(5)}  used by somebody else on the network"
        )
    if not pool.exact:
        lines.append("  by the pool's status, which names 1,000 holders at most: you may not read its IPBlocks")
    return "\n".join(lines) + "\n"


def _number(number: int) -> str:
    """As it is, unless that is more than anybody reads (an IPv6 subnet)."""
    return str(number) if number < 10**9 else f"{number:.2g}"


def traces(found: Sequence[Trace], style: Style) -> str:
    """Who answers at an address."""
    return "\n".join(_trace(each, style) for each in found)


def _trace(found: Trace, style: Style) -> str:
    head = f"[{found.address}]" if ":" in found.address else found.address
    fields = [("owner", f"LoadBalancer {found.owner}" if found.rule else found.owner or "nobody")]
    if found.service:
        fields.append(("service", f"{found.service} (guest cluster: namespace/name)"))
    if found.rule or found.network:
        fields.append(("network", found.network or "management"))
    if found.pool:
        fields.append(("pool", found.pool))
    if found.rule:
        fields += [
            ("rule", found.rule),
            ("mode", found.mode or "-"),
            ("host", found.host or "-"),
            ("clients", ", ".join(found.sources) or "all"),
        ]
        if found.counters is not None:
            counted = f"{found.counters.client_packets} packets, {found.counters.client_bytes} bytes from clients"
            fields.append(("counted", f"{counted} (all ports, since the agent started)"))
        else:
            fields.append(("counted", found.uncounted or "-"))
    if found.problem:
        fields.append(("problem", found.problem))
    lines = [f"{head}:{found.port}/{found.protocol}\n"]
    for name, text in fields:
        painted = style.paint(name.ljust(9), "red") if name == "problem" else name.ljust(9)
        lines.append(f"  {painted}{indented(text, 11, style)}\n")
    if found.backends:
        body = [
            [
                f"  {b.name}",
                ",".join(b.addresses) or "-",
                "-" if b.port is None else str(b.port),
                {True: "healthy", False: "out", None: "in use"}[b.healthy],
                b.message,
            ]
            for b in found.backends
        ]
        lines.append("\n" + table(["  BACKEND", "ADDRESS", "PORT", "STATE", "WHY"], body, style))
    return "".join(lines)


def drain(found: Drain, *, dry_run: bool) -> str:
    """What was done, or would be."""
    what = f"{found.namespace}/{found.name}" if found.namespace else found.name
    text = f"{found.kind} {what} {found.message}\n"
    if found.load_balancers:
        text += f"load balancers: {', '.join(found.load_balancers)}\n"
    if dry_run and found.patch is not None:
        text += "nothing was changed (--dry-run)\n"
    return text


def findings(found: Sequence[Finding], style: Style) -> str:
    """The list of ``check``, and what it comes to."""
    wide = max((len(f.name) for f in found), default=0) + 2
    lines = []
    for each in found:
        mark, color = _MARKS[each.verdict]
        indent = 7 + wide
        line = f"{style.paint(mark.ljust(5), color)}  {each.name.ljust(wide)}{indented(each.message, indent, style)}"
        lines.append(line.rstrip() + "\n")
        if each.todo and each.verdict != "ok":
            lines.append(" " * indent + indented(f"do: {each.todo}", indent, style) + "\n")
    count = {v: sum(1 for f in found if f.verdict == v) for v in ("wrong", "warning", "unknown")}
    said = ", ".join(f"{n} {v}" for v, n in count.items() if n)
    lines.append(f"\n{said}.\n" if said else "\nAll is fine.\n")
    return "".join(lines)
