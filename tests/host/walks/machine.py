"""The steps of a walk: what tenants, operators, machines and misfortune do to a host, in any order. One machine for
every kind of API server."""

import asyncio
import math
from typing import Any

import msgspec
from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule

from cloudprovider.core.api.loadbalancer import NETWORK_ANNOTATION, LoadBalancer
from cloudprovider.core.errors import BridgeError
from cloudprovider.core.lbobject import object_key
from cloudprovider.core.rules.holdings import holdings
from cloudprovider.core.rules.pools import check_pool
from cloudprovider.kube.resources import GUESTCLUSTERS, IPBLOCKS, IPPOOLS, LOADBALANCERS
from tests.host.walks.frame import Frame
from tests.host.walks.rest import can_be_recorded_anew, differences, reaches_what_is_shown
from tests.host.walks.scene import (
    EDITS,
    FAMILIES,
    FIXED,
    INTRUDED,
    MACHINES,
    NAMES,
    NAMESPACE,
    RESERVED,
    SERVICES,
    TENANTS,
    VLAN,
    Wish,
    changed,
    machine,
    request,
)
from tests.host.walks.state import path

names = st.sampled_from(NAMES)
wishes = st.builds(
    Wish,
    ipam=st.sampled_from(["pool"] * 5 + ["dhcp"]),
    ip_pool=st.sampled_from(["", "", "p", "q", "r"]),
    network=st.sampled_from(["", "", "", VLAN]),
    fixed=st.sampled_from(["", "", "", *FIXED]),
    families=st.sampled_from(["single", "single", *FAMILIES]),
    primary=st.sampled_from(["", "", "", "", "a", "b"]),
)
pauses = st.sampled_from([0.0, 0.0, 0.1, 0.3, 1.0])


class Walks(Frame):
    """``loop``, ``open`` and ``rest``: made by whoever knows the API server."""

    # --- what tenants and machines' owners do ----------------------------------------------------------------------

    @precondition(lambda self: self.hosts)
    @rule(name=names, wish=wishes, which=st.integers(0, 1), pause=pauses)
    def ask(self, name: str, wish: Wish, which: int, pause: float) -> None:
        self.count("ask")
        self.run(self._ask(name, wish, which, pause))

    @precondition(lambda self: self.hosts)
    @rule(name=names, wish=wishes, which=st.integers(0, 1), pause=pauses)
    def ask_again(self, name: str, wish: Wish, which: int, pause: float) -> None:
        self.count("ask")
        self.run(self._ask(name, wish, which, pause))

    @precondition(lambda self: self.hosts)
    @rule(wanted=st.dictionaries(names, wishes, min_size=3, max_size=8), which=st.integers(0, 1), pause=pauses)
    def ask_at_once(self, wanted: dict[str, Wish], which: int, pause: float) -> None:
        """A burst: many in one batch."""
        for _ in wanted:
            self.count("ask")

        async def all_of_them() -> None:
            await asyncio.gather(*(self._ask(name, wish, which, 0.0) for name, wish in wanted.items()))
            await asyncio.sleep(pause)

        self.run(all_of_them())

    async def _ask(self, name: str, wish: Wish, which: int, pause: float) -> None:
        if name in MACHINES:
            made = await self._ask_for_machine(name, wish)
        else:
            host = self.hosts[which % len(self.hosts)][0]
            owner, key = SERVICES[name], self.names.key(name)
            try:
                await host.backend.ensure(owner, key, request(name, wish), ())
            except BridgeError:  # its limits, or its predecessor is still going: it asks again later
                if await self.world.load_balancer(object_key(owner, key)) is None:
                    self.names.gone(name)
                return
            made = await self.world.load_balancer(object_key(owner, key))
        if made is not None:
            self.asked.setdefault(path(made), []).append(made)
        await asyncio.sleep(pause)

    async def _ask_for_machine(self, name: str, wish: Wish) -> LoadBalancer | None:
        wanted = machine(name, wish)
        have = await self.world.load_balancer(wanted.key)
        if have is None:
            return await self.admin.create(LOADBALANCERS, wanted)
        if have.metadata.deletion_timestamp:
            return None
        patch = {
            "metadata": {"annotations": {NETWORK_ANNOTATION: wish.network or None}},
            "spec": msgspec.to_builtins(wanted.spec) | {"ipPool": wanted.spec.ip_pool},
        }
        defaults = {"ipam": "pool", "addresses": [], "ipFamilies": [], "ipFamilyPolicy": "SingleStack"}
        patch["spec"] = {**defaults, **patch["spec"]}
        return await self.admin.merge_patch(LOADBALANCERS, *wanted.key, patch)

    @precondition(lambda self: self.hosts)
    @rule(name=names, which=st.integers(0, 1), pause=pauses)
    def delete(self, name: str, which: int, pause: float) -> None:
        self.count("delete")
        self.run(self._delete_by_name(name, which, pause))

    async def _delete_by_name(self, name: str, which: int, pause: float) -> None:
        if name in MACHINES:
            if (lb := await self.world.load_balancer((NAMESPACE, name))) is not None:
                await self.drop(lb)
        elif name in self.names.uids:
            owner, key = SERVICES[name], self.names.key(name)
            if (lb := await self.world.load_balancer(object_key(owner, key))) is not None:
                self.asked.setdefault(path(lb), []).append(lb)
            host = self.hosts[which % len(self.hosts)][0]
            await host.backend.delete(owner, key)
            left = await self.world.load_balancer(object_key(owner, key))
            if left is None or left.metadata.deletion_timestamp:
                self.names.gone(name)
        await asyncio.sleep(pause)

    # --- what operators do -----------------------------------------------------------------------------------------

    @rule(name=st.sampled_from(list(EDITS)), which=st.integers(0, 4), pause=pauses, forced=st.booleans())
    def edit_ranges(self, name: str, which: int, pause: float, *, forced: bool) -> None:
        """As admission lets through, or past it: its webhook does not answer."""
        self.count("edit a pool")
        ranges = list(EDITS[name][which % len(EDITS[name])])
        self.run(self._edit(name, pause, forced=forced and not self.lost, ranges=ranges))

    @rule(name=st.sampled_from(["p", "q"]), which=st.integers(0, 2), pause=pauses)
    def reserve(self, name: str, which: int, pause: float) -> None:
        self.count("reserve")
        kept = list(RESERVED[name][which % len(RESERVED[name])])
        self.run(self._edit(name, pause, forced=False, reservations=kept))

    @rule(name=st.sampled_from(list(EDITS)), most=st.integers(0, 3), pause=pauses)
    def limit_a_pool(self, name: str, most: int, pause: float) -> None:
        self.count("limit")
        self._loosen(name, most or math.inf)
        self.run(self._edit(name, pause, forced=False, addresses_per_tenant=most))

    def _loosen(self, whose: str, most: float) -> None:
        self.loosest[whose] = max(most, self.loosest.get(whose, 0))

    async def _edit(self, name: str, pause: float, *, forced: bool, **spec: Any) -> None:
        every = {p.metadata.name: p for p in (await self.admin.list(IPPOOLS)).items}
        old = every[name]
        new = changed(old, **spec)
        held = holdings(b for b in await self.world.blocks() if b.spec.pool == name)
        if not forced and not self.hosts:
            return  # nobody answers for admission, and it fails closed
        if self.lost and "ranges" in spec and not reaches_what_is_shown(new, every, await self.world.load_balancers()):
            return  # whose records are lost just now, an operator can't know
        if not forced and check_pool(new, old, every.values(), held).violations:
            return
        fields: dict[str, Any] = msgspec.to_builtins(new.spec)
        body = {"ranges": fields["ranges"], "reservations": fields.get("reservations", [])}
        body["addressesPerTenant"] = new.spec.addresses_per_tenant
        await self.admin.merge_patch(IPPOOLS, "", name, {"spec": body})
        await asyncio.sleep(pause)

    @rule(which=st.sampled_from(TENANTS), most=st.integers(1, 6), pause=pauses)
    def limit_a_tenant(self, which: Any, most: int, pause: float) -> None:
        self.count("limit")
        patch = {"spec": {"quota": {"addresses": most}}}
        self._loosen(which.path, most)

        async def patched() -> None:
            await self.admin.merge_patch(GUESTCLUSTERS, which.namespace, which.cluster, patch)
            await asyncio.sleep(pause)

        self.run(patched())

    @rule(which=st.integers(0, 5), pause=pauses)
    def lose_a_block(self, which: int, pause: float) -> None:
        self.count("lose a block")
        self.run(self._lose(which, pause))

    async def _lose(self, which: int, pause: float) -> None:
        state = await self._state()
        blocks = [b for b in state.blocks if can_be_recorded_anew(b, state)]
        if blocks:
            name = blocks[which % len(blocks)].metadata.name
            self.lost = True
            self.witness.taken_away.add(name)
            await self.admin.delete(IPBLOCKS, "", name)
        await asyncio.sleep(pause)

    # --- misfortune ------------------------------------------------------------------------------------------------

    @precondition(lambda self: len(self.hosts) < 2)
    @rule(pause=pauses)
    def start_a_host(self, pause: float) -> None:
        self.count("start a host")
        self.run(self._start_host())
        self.run(asyncio.sleep(pause))

    @precondition(lambda self: self.hosts)
    @rule()
    def kill_a_host(self) -> None:
        self.count("kill a host")
        self.run(self._kill_host())

    @rule(pause=pauses)
    def start_or_kill_the_agent(self, pause: float) -> None:
        self.count("start or kill the agent")
        self.run(self._start_agent() if self.agent is None else self._kill_agent())
        self.run(asyncio.sleep(pause))

    @rule(ip=st.sampled_from(INTRUDED), network=st.sampled_from(["", "", VLAN]), pause=pauses)
    def another_machine(self, ip: str, network: str, pause: float) -> None:
        """One that is none of ours takes an address, or leaves it."""
        self.count("conflict")
        self.link.intruders ^= {(network, ip)}
        self.intruded.add((network, ip))
        self.run(self._told(pause))

    @rule(pause=pauses)
    def the_dhcp_server_falls_silent_or_speaks(self, pause: float) -> None:
        self.count("lease")
        self.link.silent = not self.link.silent
        self.run(self._told(pause))

    @precondition(lambda self: self.link.leases)
    @rule(which=st.integers(0, 5), pause=pauses)
    def a_lease_ends(self, which: int, pause: float) -> None:
        self.count("lease")
        uid = sorted(self.link.leases)[which % len(self.link.leases)]
        ip = self.link.leases.pop(uid)
        for places in self.link.up.values():
            if places.get(("", ip)) == uid:
                del places["", ip]
        self.run(self._told(pause))

    async def _told(self, pause: float) -> None:
        if self.agent is not None:
            self.agent[0].look_again()
        await asyncio.sleep(pause)

    # --- rest ------------------------------------------------------------------------------------------------------

    @precondition(lambda self: self.hosts and self.restless)
    @rule()
    def come_to_rest(self) -> None:
        self.count("rest")
        self.run(self._settle())

    @precondition(lambda self: len(self.hosts) == 1)
    @rule(agent_too=st.booleans())
    def restart_and_nothing_changes(self, agent_too: bool) -> None:
        self.count("restart")
        self.run(self._restart(agent_too=agent_too))

    async def _restart(self, *, agent_too: bool) -> None:
        await self._settle()
        before = await self._state()
        await self._kill_host()
        if agent_too and self.agent is not None:
            await self._kill_agent()
            await self._start_agent()
        await self._start_host()
        await self._settle()
        after = await self._state()
        found = list(differences(before, after))
        self.failed = bool(found)
        assert not found, "\n".join(found)
