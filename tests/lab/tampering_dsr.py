"""As tampering.py, in the rules of mode dsr."""

from tests.lab.groupcheck import ERROR, FRAGMENT
from tests.lab.snapshot import GROUP_MASK, RESTRICTED, State
from tests.lab.tampering import Tamper, group, listener


def direct_group(state: State) -> int:
    return state.kernel.dsr.listeners[listener(state, "direct")] & GROUP_MASK


def direct_table(state: State) -> dict[int, str]:
    (found,) = (table for (number, _), table in state.kernel.dsr.slots.items() if number == direct_group(state))
    return found


def with_errors(state: State, count: int) -> None:
    state.kernel.dsr.errors = count


TAMPERED: dict[str, tuple[Tamper, str]] = {
    "listener gone": (lambda s: s.kernel.dsr.listeners.pop(listener(s, "direct")), "goes to None, not to ["),
    "listener of another mode": (
        lambda s: s.kernel.nat.listeners.update({listener(s, "direct"): group(s, "web")}),
        "goes to ['10.77.0.21', '10.77.0.22'], not to None",
    ),
    "nat listener passed on": (
        lambda s: s.kernel.dsr.listeners.update({listener(s, "web"): direct_group(s)}),
        "not to None",
    ),
    "listener by flow": (
        lambda s: s.kernel.dsr.listeners.update({listener(s, "picky"): direct_group(s) | RESTRICTED}),
        "is wrong in choosing by the client's address",
    ),
    "source range gone": (lambda s: s.kernel.dsr.sources.clear(), "is open to [], not to ['10.77.0.0/24']"),
    "slot to a stranger": (lambda s: direct_table(s).update({711: "02:00:00:00:00:01"}), "'02:00:00:00:00:01'"),
    "slot gone": (lambda s: direct_table(s).pop(711), "has 4098 slots, not 4099"),
    "mark leads nowhere": (
        lambda s: s.kernel.dsr.tables.pop((4, direct_group(s))),
        "leads to None, not to by_flow4_4099",
    ),
    "fragments lead nowhere": (
        lambda s: s.kernel.dsr.steps.pop((4, direct_group(s) | FRAGMENT)),
        "leads to None, not to by_flow4_4099",
    ),
    "errors lead elsewhere": (
        lambda s: s.kernel.dsr.steps.update({(4, direct_group(s) | ERROR): "by_flow4_4099"}),
        "leads to by_flow4_4099, not to error_flow4_4099",
    ),
    "errors of a listener gone": (lambda s: with_errors(s, 1), "ICMP errors are looked up for 1 listeners of 2"),
    "fragments of an address gone": (lambda s: s.kernel.dsr.fragments.clear(), "fragments are looked up for []"),
    "way shut": (lambda s: s.kernel.dsr.ways.clear(), "no packet of ip comes to the rules of mode dsr"),
    "returned frames unknown": (
        lambda s: s.kernel.dsr.members.pop(direct_group(s)),
        "knows frames that come back from [], not [",
    ),
    "group left over": (lambda s: s.kernel.dsr.members.update({0xABCDEF: set()}), "are used by no listener"),
    "rules flushed": (
        lambda s: s.kernel.dsr.chains.update({"netdev out": 0}),
        "kernel: the chain netdev out has no rule",
    ),
}
