"""Creating, editing and deleting a load balancer for virtual machines."""

from collections.abc import Mapping
from typing import Final

from aiohttp import web

from cloudprovider.console import lbform
from cloudprovider.console.editor import Pathways
from cloudprovider.console.lbform import LbForm
from cloudprovider.console.machines import matching
from cloudprovider.console.namespaces import visible_namespaces
from cloudprovider.console.pools import held_of, networks_of, visible_pools
from cloudprovider.console.sessions import Session
from cloudprovider.core import checkrules
from cloudprovider.core.api.loadbalancer import LoadBalancer
from cloudprovider.core.pools import survey
from cloudprovider.core.rules.loadbalancers import advise, check_load_balancer, check_quota, choose_pool
from cloudprovider.core.rules.verdict import Verdict
from cloudprovider.kube.resources import LOADBALANCERS

WAYS: Final = Pathways(
    name="lb",
    listing="/loadbalancers",
    one="/loadbalancers/{namespace}/{name}",
    aliases=lbform.ALIASES,
    titles=lbform.TITLES,
    tabs={
        "basic": "Basic",
        "listeners": "Listeners",
        "selector": "Backend Server Selector",
        "check": "Health Check",
    },
    tab_of={"listeners": "listeners", "backendServerSelector": "selector", "healthCheck": "check"},
    cautions_at="ipPool",
)


class LbKind:
    """The form of a load balancer."""

    resource: Final = LOADBALANCERS
    form: Final = LbForm
    ways: Final = WAYS

    def blank(self, request: web.Request) -> LbForm:
        """A new form."""
        return LbForm.blank(request.query.get("namespace", "")[:63])

    def key(self, source: Mapping[str, str]) -> tuple[str, str]:
        """Namespace and name."""
        return source.get("namespace", ""), source.get("name", "")

    def require_editable(self, obj: LoadBalancer) -> None:
        """A guest's Service is changed in the guest."""
        if obj.spec.workload_type == "cluster":
            text = "This is a guest cluster's Service: it is changed there, here it is only shown."
            raise web.HTTPForbidden(text=text)

    async def judge(self, session: Session, wanted: LoadBalancer, old: LoadBalancer | None) -> Verdict:
        """As the webhook does, with the pools that the user may read."""
        verdict = check_load_balancer(wanted, old)
        if verdict.violations:
            return verdict
        verdict += advise(wanted)
        pools, _ = await visible_pools(session)
        if not pools:
            return verdict
        view, choice = choose_pool(wanted, survey(pools))
        verdict += choice
        if view is not None and view.pool.spec.addresses_per_tenant:
            verdict += check_quota(wanted, view.pool, await held_of(session, view.name))
        return verdict

    async def judge_deletion(self, session: Session, obj: LoadBalancer) -> Verdict:
        """Anybody who may, may."""
        del session, obj
        return Verdict()

    async def matches(self, session: Session, form: LbForm) -> dict[str, object]:
        """The virtual machines that it is for."""
        return {"matches": await matching(session.client, form.namespace, form.label_selector)}

    async def choices(self, session: Session, form: LbForm, old: LoadBalancer | None) -> dict[str, object]:
        """Pools, networks, namespaces."""
        del form
        pools, problem = await visible_pools(session)
        return {
            "pools": pools,
            "pools_problem": problem,
            "networks": networks_of(pools),
            "namespaces": await visible_namespaces(session) if old is None else (),
            "protocols": lbform.PROTOCOLS,
            "kinds": checkrules.PROTOCOLS,
            "uses": lbform.USES,
        }
