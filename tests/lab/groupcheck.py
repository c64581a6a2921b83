"""The groups of nodes in the host's kernel: whether each is whole, used, and found by every way that leads to it."""

from collections.abc import Iterator

from tests.lab.snapshot import BY_CLIENT, GROUP_MASK, Rules

FRAGMENT, ERROR = 0x06000000, 0x07000000
"""What a mark is looked up for beside its plain look-up."""


def unused(groups: set[int]) -> Iterator[str]:
    if groups:
        yield f"kernel: groups {sorted(groups)} are used by no listener"


def whole_table(group: int, rules: Rules) -> tuple[int, list[str]]:
    """The size of the group's table, and what is wrong with it; 0 where there is no one table."""
    sizes = [size for held, size in rules.slots if held == group]
    if len(sizes) != 1:
        return 0, [f"kernel: group {group} has tables of the sizes {sizes}"]
    (size,) = sizes
    slots = rules.slots[group, size]
    if slots.keys() != set(range(size)):
        return 0, [f"kernel: group {group} has {len(slots)} slots, not {size}"]
    return size, []


def dsr_groups(rules: Rules) -> Iterator[str]:
    """As in mode nat; and frames that come back are known by the group's own nodes, ICMP errors and fragments find
    their way. What a group does while it changes is left to the engine's own tests."""
    marks = [*rules.listeners.values(), *rules.former.values()]
    used = {mark & GROUP_MASK for mark in marks} - {0}
    held = {group for group, _ in rules.slots} | rules.members.keys()
    held |= {mark & GROUP_MASK for _, mark in [*rules.tables, *rules.steps]}
    yield from unused(held - used)
    for group in sorted(used):
        size, wrong = whole_table(group, rules)
        yield from wrong
        if size:
            yield from _ways(group, size, rules)
            nodes = set(rules.slots[group, size].values())
            if (found := rules.members.get(group, set())) != nodes:
                yield f"kernel: group {group} knows frames that come back from {sorted(found)}, not {sorted(nodes)}"
    if rules.errors != len(rules.listeners):
        yield f"kernel: ICMP errors are looked up for {rules.errors} listeners of {len(rules.listeners)}"
    for version in {"ip6" if ":" in address else "ip" for address, _, _ in rules.listeners}:
        if version not in rules.ways:
            yield f"kernel: no packet of {version} comes to the rules of mode dsr"
    addresses = {address for (address, _, _), mark in rules.listeners.items() if mark & GROUP_MASK}
    if rules.fragments != addresses:
        yield f"kernel: fragments are looked up for {sorted(rules.fragments)}, not {sorted(addresses)}"


def _ways(group: int, size: int, rules: Rules) -> Iterator[str]:
    for version in (4, 6):
        for hashed, mark in (("flow", group), ("client", group | BY_CLIENT)):
            end = f"_{hashed}{version}_{size}"
            found = rules.tables.get((version, mark))
            if found not in (f"by{end}", f"tracked{version}"):
                yield f"kernel: mark {mark:#x} leads to {found}, not to by{end}"
            for step, chain in ((FRAGMENT, f"by{end}"), (ERROR, f"error{end}")):
                if (found := rules.steps.get((version, mark | step))) != chain:
                    yield f"kernel: mark {mark | step:#x} leads to {found}, not to {chain}"
