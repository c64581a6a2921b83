"""``kubectl lb check``: reads the facts that :mod:`cloudprovider.core.installation` judges."""

import asyncio
import base64
import binascii
import os
import socket
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, Final

import msgspec
from cryptography import x509

from cloudprovider.cli.crds import DEFINITIONS, manifest
from cloudprovider.cli.kubectl.session import SYSTEM, Session
from cloudprovider.core import installation
from cloudprovider.core.api.access import ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec
from cloudprovider.core.api.kubernetes import Lease
from cloudprovider.core.api.meta import ObjectMeta
from cloudprovider.core.api.pool import IPPool, IPPoolSpec, Range
from cloudprovider.core.errors import CloudProviderError, Forbidden, Invalid, KubeError, NotFound
from cloudprovider.core.installation import Finding
from cloudprovider.core.naming import (
    AGENT_PROGRAM,
    GUEST_PROGRAM,
    GUEST_SECRET,
    HOST_PROGRAM,
    RENEWED_SECRET,
    SERVER_SECRET,
)
from cloudprovider.core.permissions import OF_GUEST_USERS, OF_OPERATORS, OF_PROGRAMS, Permission, program_of
from cloudprovider.kube import resources
from cloudprovider.kube.resources import SELF_SUBJECT_ACCESS_REVIEWS, SELF_SUBJECT_REVIEWS

WEBHOOK: Final = "cloudprovider-admission"
OLD_NAMESPACE: Final = "harvester-system"
OLD_CONTROLLER: Final = "harvester-load-balancer"
_REISSUE: Final = "cloudprovider tenant server-certificate NAMES; the host's log says why it did not renew it"
_REISSUE_GUEST: Final = (
    "have the host's operator issue it anew: cloudprovider tenant rotate; the log says why it did not renew"
)


async def check(session: Session, clock: Callable[[], datetime]) -> list[Finding]:
    """Look at everything that an installation needs, as far as the user may see it."""
    found = [await _server(session)]
    found.append(installation.clock(clock(), (await session.cluster.read("/version")).date))
    host = session.side == "host"
    if host:
        found += [f async for f in _definitions(session)]
    found.append(await _permissions(session, OF_OPERATORS if host else OF_GUEST_USERS))
    certificates = (
        (
            (SERVER_SECRET, "the bridge", _REISSUE),
            ("cloudprovider-webhook-tls", "the webhook", "nothing: the host program renews it; look at its log"),
        )
        if host
        else ((GUEST_SECRET, "the guest", _REISSUE_GUEST),)
    )
    for secret, whose, todo in certificates:
        found += await _certificates(session, secret, whose, todo)
    leases = await _leases(session)
    for program in (HOST_PROGRAM, AGENT_PROGRAM) if host else (GUEST_PROGRAM,):
        found.append(installation.program(program, leases, session.now))
    if host:
        found.append(await _old_controller(session))
        found += await webhook(session)
        found += await _networks(session)
        peers = await session.seen(resources.BGPPEERS, "BGP peers", namespace="")
        advertisements = await session.seen(resources.BGPADVERTISEMENTS, "BGP advertisements", namespace="")
        if peers is not None and advertisements is not None:
            found += installation.routers(peers, advertisements)
        tenants = await session.seen(resources.GUESTCLUSTERS, "guest clusters", namespace="")
        found += installation.guests(tenants or (), session.now)
        found += await _kernel(session)
    return found


async def _server(session: Session) -> Finding:
    loop = asyncio.get_running_loop()
    began = loop.time()
    version = msgspec.json.decode((await session.cluster.read("/version")).body, type=dict[str, Any])
    took = (loop.time() - began) * 1000
    side = "a host: it has load balancer objects" if session.side == "host" else "a guest: no load balancer objects"
    message = f"{version.get('gitVersion', 'unknown version')}, answers in {took:.0f} ms; {side}"
    return Finding(name="API server", verdict="ok" if took < 1000 else "warning", message=message)


async def _definitions(session: Session) -> AsyncIterator[Finding]:
    async with session.progress.doing("reading the kinds' definitions"):
        for each in DEFINITIONS:
            ours = manifest(each)["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
            try:
                there = await session.cluster.get(resources.DEFINITIONS, "", each.name)
            except NotFound:
                yield installation.definition(each.resource.kind, None, ours)
                continue
            except Forbidden:
                message = "you may not read CustomResourceDefinitions"
                yield Finding(name=f"CRD {each.resource.kind}", verdict="unknown", message=message)
                continue
            version = next((v for v in there.spec.versions if v.name == each.resource.version), None)
            if version is None:
                yield installation.definition(each.resource.kind, None, ours)
                continue
            installed = msgspec.json.decode(version.schema.open_api_v3_schema)
            yield installation.definition(each.resource.kind, installed, ours)


async def _permissions(session: Session, needed: Sequence[Permission]) -> Finding:
    allowed: dict[Permission, bool] = {}
    async with session.progress.doing("asking what you may do"):
        me = await session.cluster.create(SELF_SUBJECT_REVIEWS, resources.SELF_SUBJECT_REVIEWS.type())
        who = me.status.user_info.username
        for each in OF_PROGRAMS.get(program_of(who), needed):
            spec = SelfSubjectAccessReviewSpec(
                resource_attributes=ResourceAttributes(
                    namespace=each.namespace,
                    verb=each.verb,
                    group=each.group,
                    resource=each.resource,
                    name=each.name,
                )
            )
            answer = await session.cluster.create(SELF_SUBJECT_ACCESS_REVIEWS, SelfSubjectAccessReview(spec=spec))
            allowed[each] = answer.status.allowed
    return installation.permissions(allowed, who)


async def _certificates(session: Session, secret: str, whose: str, todo: str) -> list[Finding]:
    name = f"certificate of {whose}"
    try:
        data = (await session.cluster.get(resources.SECRETS, SYSTEM, secret)).data
        if secret == GUEST_SECRET:
            secret, data = await _newer(session, secret, data)
    except NotFound:
        return [Finding(name=name, verdict="wrong", message=f"there is no Secret {SYSTEM}/{secret}", todo=todo)]
    except Forbidden:
        return [Finding(name=name, verdict="unknown", message=f"you may not read the Secret {SYSTEM}/{secret}")]
    found = []
    for key, title in (("tls.crt", name), ("ca.crt", f"CA of {whose}")):
        try:
            read = _certificate(data, key)
        except (ValueError, binascii.Error):
            message = f"{key} of the Secret {SYSTEM}/{secret} holds no certificate"
            found.append(Finding(name=title, verdict="wrong", message=message, todo=todo))
            continue
        dates = (read.not_valid_before_utc, read.not_valid_after_utc)
        found.append(installation.certificate(title, *dates, session.now, todo))
    return found


async def _newer(session: Session, secret: str, data: dict[str, str]) -> tuple[str, dict[str, str]]:
    """What a guest uses: what it was given, or what it has renewed since."""
    try:
        renewed = (await session.cluster.get(resources.SECRETS, SYSTEM, RENEWED_SECRET)).data
        begins = [_certificate(each, "tls.crt").not_valid_before_utc for each in (data, renewed)]
    except (NotFound, Forbidden, ValueError, binascii.Error):
        return secret, data
    return (RENEWED_SECRET, renewed) if begins[1] >= begins[0] else (secret, data)


def _certificate(data: dict[str, str], key: str) -> x509.Certificate:
    """Raises ValueError, binascii.Error."""
    return x509.load_pem_x509_certificates(base64.b64decode(data.get(key, ""), validate=True))[0]


async def _leases(session: Session) -> Sequence[Lease] | None:
    try:
        return (await session.cluster.list(resources.LEASES, SYSTEM)).items
    except (Forbidden, NotFound):
        return None


async def _old_controller(session: Session) -> Finding:
    name = "Harvester's own controller"
    try:
        old = await session.cluster.get(resources.DEPLOYMENTS, OLD_NAMESPACE, OLD_CONTROLLER)
    except NotFound:
        return Finding(name=name, verdict="ok", message="not there")
    except Forbidden:
        message = f"you may not read the Deployment {OLD_NAMESPACE}/{OLD_CONTROLLER}"
        return Finding(name=name, verdict="unknown", message=message)
    if old.spec.replicas == 0:
        return Finding(name=name, verdict="ok", message="switched off")
    message = "it runs, and works on the same objects"
    return Finding(
        name=name, verdict="wrong", message=message, todo="cloudprovider takeover, which changes nothing yet"
    )


async def webhook(session: Session) -> list[Finding]:
    """Whether pools are judged: by a pool that only the webhook refuses, in a dry run."""
    name = "webhook"
    try:
        configuration = await session.cluster.get(resources.WEBHOOK_CONFIGURATIONS, "", WEBHOOK)
    except NotFound:
        message = "not registered: wrong pools are not refused"
        return [Finding(name=name, verdict="warning", message=message, todo="kubectl apply -k manifests/host")]
    except Forbidden:
        return [Finding(name=name, verdict="unknown", message=f"you may not read the configuration {WEBHOOK}")]
    if not all(w.client_config.ca_bundle for w in configuration.webhooks):
        message = "registered, but the API server does not trust it yet: its caBundle is empty"
        todo = "the host program fills it in: look at its log"
        return [Finding(name=name, verdict="wrong", message=message, todo=todo)]
    wrong = IPPool(
        metadata=ObjectMeta(name="kubectl-lb-check"),
        spec=IPPoolSpec(ranges=[Range(subnet="224.0.0.0/24")]),  # what only the webhook refuses
    )
    try:
        async with session.progress.doing("asking the webhook"):
            await session.cluster.create(resources.IPPOOLS, wrong, dry_run=True)
    except Invalid:
        return [Finding(name=name, verdict="ok", message="registered, and answers")]
    except Forbidden as error:
        if "denied the request" in str(error):
            return [Finding(name=name, verdict="ok", message="registered, and answers")]
        return [Finding(name=name, verdict="unknown", message="registered; you may not create pools to try it")]
    except KubeError as error:
        todo = "look at the host program: pools can't be changed meanwhile"
        return [Finding(name=name, verdict="wrong", message=f"does not answer: {error}", todo=todo)]
    return [
        Finding(name=name, verdict="wrong", message="let a wrong pool pass", todo="kubectl apply -k manifests/host")
    ]


async def _networks(session: Session) -> list[Finding]:
    try:
        pools = (await session.cluster.list(resources.IPPOOLS)).items
    except Forbidden:
        return [Finding(name="networks", verdict="unknown", message="you may not list pools")]
    named: dict[str, list[str]] = {}
    for pool in pools:
        named.setdefault(pool.spec.selector.network, []).append(pool.metadata.name)
    try:
        nodes = [n.metadata.name for n in (await session.cluster.list(resources.NODES)).items]
    except Forbidden:
        nodes = None
    return list(installation.networks(named, await _agents_networks(session), nodes))


async def _agents_networks(session: Session) -> Mapping[str, Sequence[str]] | None:
    """Host to the networks in its file, by the ConfigMap that the agents' DaemonSet shows them."""
    try:
        agents = await session.cluster.get(resources.DAEMON_SETS, SYSTEM, AGENT_PROGRAM)
        volumes = [v.config_map.name for v in agents.spec.template.spec.volumes if v.config_map is not None]
        files: dict[str, str] = {}
        for name in volumes:
            files |= (await session.cluster.get(resources.CONFIG_MAPS, SYSTEM, name)).data
    except (Forbidden, NotFound):
        return None
    found: dict[str, Sequence[str]] = {}
    for name, text in files.items():
        try:
            file = msgspec.yaml.decode(text, type=_NetworksFile)
        except msgspec.DecodeError:
            continue  # the agent says what is wrong with it
        found[name.removesuffix(".yaml")] = [n.name for n in file.networks]
    return found


class _NetworkEntry(msgspec.Struct):
    name: str = ""


class _NetworksFile(msgspec.Struct):
    networks: list[_NetworkEntry] = []


async def _kernel(session: Session) -> list[Finding]:
    """On a host's own node, as root: what its kernel has of what the agent needs."""
    if os.geteuid() != 0:
        return []
    try:
        await session.cluster.get(resources.NODES, "", socket.gethostname())
    except KubeError:
        return []
    return await asyncio.to_thread(kernel)


def kernel() -> list[Finding]:
    """Ask this kernel, in a network namespace that ends with the question."""
    from cloudprovider.dataplane import namespace, ruleset  # noqa: PLC0415 - libnftables, on a host alone
    from cloudprovider.dataplane.features import find  # noqa: PLC0415
    from cloudprovider.dataplane.naming import LINK  # noqa: PLC0415

    def run(script: str) -> None:
        ruleset.run(script.replace(f'"{LINK}"', '"lo"'))  # a new namespace has that link alone

    try:
        features = namespace.call_in_new(lambda: find(run))
    except CloudProviderError as error:
        return [Finding(name="kernel", verdict="unknown", message=str(error))]
    if features.nat:
        return [Finding(name="kernel", verdict="wrong", message=features.nat)]
    if features.dsr:
        return [Finding(name="kernel", verdict="warning", message=features.dsr, todo="use mode nat on this host")]
    if features.handover:
        todo = "drain hosts when few connections are open"
        return [Finding(name="kernel", verdict="warning", message=features.handover, todo=todo)]
    return [Finding(name="kernel", verdict="ok", message="has all that both modes need")]
