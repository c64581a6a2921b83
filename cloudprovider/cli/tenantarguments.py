"""The flags of ``cloudprovider tenant``, and what each of its commands does with them."""

import argparse
import asyncio
import random
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeAlias

from cloudprovider import __version__
from cloudprovider.cli.arguments import checked, parser
from cloudprovider.cli.options import DEFAULT_TRUST_DOMAIN, days, host_port, network
from cloudprovider.core.errors import CloudProviderError, ConfigurationError

if TYPE_CHECKING:
    from cloudprovider.cli.tenant import TenantLimits, Written
    from cloudprovider.cli.tenantadmin import Issued, TenantAdmin
    from cloudprovider.core.exchange import Tenant
    from cloudprovider.kube.client import HttpKubeClient

_SubParsers: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"  # noqa: SLF001 - its only name
Work = Callable[["TenantAdmin", argparse.Namespace], Awaitable[None]]

DESCRIPTION: Final = """\
Who may use this host: guest clusters as tenants, with their certificates and the bridge's own.

All but `issue` work on the host cluster, by your own kubeconfig. The CA is a Secret there, made when it is first
needed, and guests that run renew their certificates by themselves. With --ca-dir the CA stays in a folder of yours:
keep it safe, whoever has it can be any guest cluster. docs/tenants.md tells more.
"""


def add(commands: _SubParsers) -> None:
    """Add the command."""
    text = "guest clusters as tenants: create, list, rotate, revoke; the bridge's certificate"
    tenant = parser(commands.add_parser, "tenant", help=text, description=DESCRIPTION)
    actions = tenant.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_create(actions)
    _add_list(actions)
    _add_rotate(actions)
    _add_revoke(actions)
    _add_server_certificate(actions)
    _add_replace_ca(actions)
    _add_issue(actions)


def _add_create(actions: _SubParsers) -> None:
    own = parser(
        actions.add_parser,
        "create",
        help="a tenant's objects on the host, and what its guest needs",
        description="Make the GuestCluster on the host, issue the certificate, and put that, with the bridge's\n"
        "address, into the guest (--guest-context, --guest-kubeconfig) or into a file, NAME.guest.yaml.",
        epilog="example:\n  cloudprovider tenant create shop --namespace shops --create-namespace \\\n"
        "      --node-cidr 10.0.8.0/24 --bridge bridge.example.org:30843 --guest-kubeconfig shop.kubeconfig\n",
    )
    _add_tenant(own)
    own.add_argument("--create-namespace", action="store_true", help="make the namespace where it is not there yet")
    _add_limits(own)
    own.add_argument(
        "--bridge",
        required=True,
        type=checked(host_port),
        metavar="HOST:PORT",
        help="where the guest reaches the bridge",
    )
    own.add_argument(
        "--cloud-init",
        type=Path,
        metavar="FILE",
        help="write NAME.cloud-init.yaml instead: user data for the servers of an RKE2 guest, with the objects of FILE"
        " (what kubectl kustomize manifests/overlays/mine/guest prints)",
    )
    _add_delivery(own)
    _add_issuing(own, ca_dir_required=False)
    _add_trust_domain(own)
    _add_host(own, _create)


def _add_list(actions: _SubParsers) -> None:
    own = parser(
        actions.add_parser,
        "list",
        help="tenants: state, end of the certificate, when last seen, version",
        description="List the tenants.\n\nSTATE: Ready; Expiring: the certificate ends within 30 days; New: has never"
        " called; Silent: not\nheard for 5 minutes; Expired, Revoked: its certificate is; Ending: its GuestCluster is"
        " being deleted.",
    )
    own.add_argument("--namespace", default="", help="only those of this host namespace")
    _add_host(own, _list)


def _add_rotate(actions: _SubParsers) -> None:
    own = parser(
        actions.add_parser,
        "rotate",
        help="another certificate for a tenant, after a revocation or where it does not renew itself",
        description="Issue another certificate for a tenant, and put it into the guest or into a file. Those before\n"
        "stay valid until they end or are revoked.",
    )
    _add_tenant(own)
    own.add_argument(
        "--bridge",
        type=checked(host_port),
        metavar="HOST:PORT",
        help="where the guest reaches the bridge; needed for a file, else the guest keeps what it has",
    )
    _add_delivery(own)
    _add_issuing(own, ca_dir_required=False)
    _add_trust_domain(own)
    _add_host(own, _rotate)


def _add_revoke(actions: _SubParsers) -> None:
    own = parser(
        actions.add_parser,
        "revoke",
        help="shut a tenant out at once",
        description="Have the host refuse every certificate of the tenant that was issued until now, renewed ones\n"
        "too, and cut its connections. Its load balancers go on as they are, unless --delete-load-balancers is\n"
        "given; nothing of them can be changed any more. `rotate` lets the tenant in again.",
    )
    _add_tenant(own)
    own.add_argument("--delete-load-balancers", action="store_true", help="end what is forwarded for it as well")
    _add_host(own, _revoke)


def _add_server_certificate(actions: _SubParsers) -> None:
    own = parser(
        actions.add_parser,
        "server-certificate",
        help="the bridge's certificate",
        description="Issue the bridge's certificate, and put it into its Secret on the host; or, with --ca-dir, write\n"
        "bridge.host.yaml, to apply on the host.",
        epilog="example:\n  cloudprovider tenant server-certificate bridge.example.org 192.0.2.1\n",
    )
    own.add_argument("hosts", nargs="+", metavar="HOST", help="names and addresses that guests reach the bridge by")
    own.add_argument("--out", type=Path, default=Path(), metavar="FOLDER", help="where to write (default: here)")
    own.add_argument("--pem", action="store_true", help="write certificate, key and CA as PEM files, not a Secret")
    _add_issuing(own, ca_dir_required=False)
    _add_cluster(own)
    own.set_defaults(command=_server_certificate, prog=own.prog)


def _add_replace_ca(actions: _SubParsers) -> None:
    own = parser(
        actions.add_parser,
        "replace-ca",
        help="a new CA, in two steps",
        description="Have a new CA sign tenants' certificates while the old one is trusted beside it; guests come for"
        " theirs\nby themselves. Then, with --finish, trust the old one no more.",
    )
    own.add_argument("--finish", action="store_true", help="the second step")
    own.add_argument("--force", action="store_true", help="though a guest still has a certificate of the old CA")
    _add_host(own, _replace_ca)


def _add_issue(actions: _SubParsers) -> None:
    own = parser(
        actions.add_parser,
        "issue",
        help="as create, but everything as files, without a cluster",
        description="Issue the certificate of a guest cluster, and write\n"
        "  NAME.host.yaml   its GuestCluster object, to apply on the host\n"
        "  NAME.guest.yaml  the Secret with certificate, key and the bridge's address, to apply in the guest",
        epilog="example:\n  cloudprovider tenant issue shop --namespace shop --node-cidr 10.0.8.0/24 \\\n"
        "      --bridge bridge.example.org:8443 --ca-dir ~/tenants --out ~/tenants/shop\n",
    )
    _add_tenant(own)
    own.add_argument(
        "--bridge",
        required=True,
        type=checked(host_port),
        metavar="HOST:PORT",
        help="where the guest reaches the bridge",
    )
    _add_limits(own)
    own.add_argument("--out", type=Path, default=Path(), metavar="FOLDER", help="where to write (default: here)")
    own.add_argument("--pem", action="store_true", help="write certificate, key and CA as PEM files, not a Secret")
    _add_issuing(own, ca_dir_required=True)
    _add_trust_domain(own)
    own.set_defaults(command=_issue, prog=own.prog)


def _add_tenant(own: argparse.ArgumentParser) -> None:
    own.add_argument("name", metavar="NAME", help="the guest cluster's name, as in its pools' scopes")
    own.add_argument("--namespace", required=True, help="host namespace of its load balancers (and machines)")


def _add_limits(own: argparse.ArgumentParser) -> None:
    own.add_argument(
        "--node-cidr",
        required=True,
        action="append",
        type=checked(network),
        metavar="CIDR",
        help="where its nodes' addresses lie; may be given several times",
    )
    own.add_argument("--network", action="append", default=[], help="allow only pools of this network; several times")
    own.add_argument("--pool", action="append", default=[], help="allow only this pool; several times")


def _add_delivery(own: argparse.ArgumentParser) -> None:
    own.add_argument(
        "--guest-kubeconfig", default="", metavar="FILE", help="put it into this guest cluster, not a file"
    )
    own.add_argument("--guest-context", default="", metavar="NAME", help="the same, by a context of kubectl")
    own.add_argument("--out", type=Path, default=Path(), metavar="FOLDER", help="where to write (default: here)")
    own.add_argument("--pem", action="store_true", help="write certificate, key and CA as PEM files, not a Secret")


def _add_issuing(own: argparse.ArgumentParser, *, ca_dir_required: bool) -> None:
    own.add_argument(
        "--ca-dir",
        required=ca_dir_required,
        type=Path,
        metavar="FOLDER",
        help="the CA: ca.crt and ca.key" + ("" if ca_dir_required else "; without it, a Secret on the host"),
    )
    own.add_argument("--days", type=checked(days), default=365, help="how long it is valid (default %(default)s)")


def _add_trust_domain(own: argparse.ArgumentParser) -> None:
    own.add_argument("--trust-domain", default=DEFAULT_TRUST_DOMAIN, help="as the host program's (default %(default)s)")


def _add_cluster(own: argparse.ArgumentParser) -> None:
    own.add_argument("--kubeconfig", default="", metavar="FILE", help="of the host cluster")
    own.add_argument("--context", default="", metavar="NAME", help="the kubeconfig's context")


def _add_host(own: argparse.ArgumentParser, work: Work) -> None:
    """The command is ``work`` on the host cluster."""
    _add_cluster(own)

    def command(parsed: argparse.Namespace) -> int:
        return _on_host(parsed, work)

    own.set_defaults(command=command, prog=own.prog)


def _on_host(parsed: argparse.Namespace, work: Work) -> int:
    try:
        asyncio.run(_run(parsed, work))
    except ConfigurationError:
        raise
    except CloudProviderError as e:
        print(f"{parsed.prog}: {e}", file=sys.stderr)  # noqa: T201
        return 1
    return 0


async def _run(parsed: argparse.Namespace, work: Work) -> None:
    from cloudprovider.cli.tenantadmin import TenantAdmin  # noqa: PLC0415 - cryptography takes its time

    async with _client(parsed.kubeconfig, parsed.context) as client:
        admin = TenantAdmin(
            client,
            folder=getattr(parsed, "ca_dir", None),
            trust_domain=getattr(parsed, "trust_domain", DEFAULT_TRUST_DOMAIN),
            clock=lambda: datetime.now(UTC),
            tell=print,
        )
        await work(admin, parsed)


@asynccontextmanager
async def _client(kubeconfig: str, context: str) -> "AsyncIterator[HttpKubeClient]":
    from cloudprovider.kube.client import HttpKubeClient  # noqa: PLC0415
    from cloudprovider.kube.credentials import load  # noqa: PLC0415

    rng = random.Random()  # noqa: S311 - jitter, no secret
    credentials = load(kubeconfig or None, context or None)
    async with HttpKubeClient(credentials, program="tenant", version=__version__, rng=rng) as client:
        yield client


async def _create(admin: "TenantAdmin", parsed: argparse.Namespace) -> None:
    from cloudprovider.cli import cloudinit, tenant  # noqa: PLC0415

    if parsed.cloud_init and (_has_guest(parsed) or parsed.pem):
        raise ConfigurationError("--cloud-init is for a guest that is not there yet: leave the others of its kind out")
    objects = cloudinit.read_objects(parsed.cloud_init) if parsed.cloud_init else ()
    issued = await admin.create(
        _tenant(parsed),
        _limits(parsed),
        validity=timedelta(days=parsed.days),
        create_namespace=parsed.create_namespace,
    )
    if not parsed.cloud_init:
        await _deliver(issued, parsed)
        return
    made = tenant.guest_objects(issued.pair, issued.trusted, parsed.bridge)
    path = parsed.out / f"{parsed.name}.cloud-init.yaml"
    tenant.prepare(parsed.out)
    tenant.write(path, cloudinit.user_data((*made, *objects)).encode(), secret=True)
    print(f"user data for the guest's servers: {path}; it holds the guest's key")  # noqa: T201


async def _list(admin: "TenantAdmin", parsed: argparse.Namespace) -> None:
    from cloudprovider.cli.kubectl.screen import Style, age, table  # noqa: PLC0415
    from cloudprovider.core import tenants  # noqa: PLC0415

    now = await admin.now()
    found = await admin.tenants(parsed.namespace)
    rows = [tenants.row(cluster, now, age(cluster.status.last_seen_time, now)) for cluster in found]
    print(table(tenants.HEADERS, rows, Style.of(sys.stdout)) if rows else "no tenants", end="" if rows else "\n")  # noqa: T201


async def _rotate(admin: "TenantAdmin", parsed: argparse.Namespace) -> None:
    if not (parsed.bridge or _has_guest(parsed) or parsed.pem):
        raise ConfigurationError(
            "missing: --bridge HOST:PORT, which goes into the file; or --guest-context or --guest-kubeconfig, to put"
            " the certificate into the guest"
        )
    await _deliver(await admin.rotate(_tenant(parsed), validity=timedelta(days=parsed.days)), parsed)


async def _revoke(admin: "TenantAdmin", parsed: argparse.Namespace) -> None:
    await admin.revoke(_tenant(parsed), delete_load_balancers=parsed.delete_load_balancers)


async def _replace_ca(admin: "TenantAdmin", parsed: argparse.Namespace) -> None:
    await admin.replace_ca(finish=parsed.finish, force=parsed.force)


async def _deliver(issued: "Issued", parsed: argparse.Namespace) -> None:
    """Into the guest, or into files."""
    from cloudprovider.cli import tenant, tenantadmin  # noqa: PLC0415

    if not _has_guest(parsed):
        bridge = parsed.bridge or ""
        _tell(tenant.write_guest(parsed.out, parsed.name, issued.pair, issued.trusted, bridge=bridge, pem=parsed.pem))
        return
    async with _client(parsed.guest_kubeconfig, parsed.guest_context) as guest:
        await tenantadmin.put_guest(guest, tenant.guest_objects(issued.pair, issued.trusted, parsed.bridge or ""))
    print("the guest has its certificate")  # noqa: T201


def _has_guest(parsed: argparse.Namespace) -> bool:
    return bool(parsed.guest_kubeconfig or parsed.guest_context)


def _tenant(parsed: argparse.Namespace) -> "Tenant":
    from cloudprovider.core.exchange import Tenant  # noqa: PLC0415

    return Tenant(parsed.namespace, parsed.name)


def _limits(parsed: argparse.Namespace) -> "TenantLimits":
    from cloudprovider.cli.tenant import TenantLimits  # noqa: PLC0415

    return TenantLimits(node_cidrs=[str(cidr) for cidr in parsed.node_cidr], networks=parsed.network, pools=parsed.pool)


def _issue(parsed: argparse.Namespace) -> int:
    from cloudprovider.cli import tenant  # noqa: PLC0415

    written = tenant.issue(
        _tenant(parsed),
        _limits(parsed),
        ca_folder=parsed.ca_dir,
        out=parsed.out,
        bridge=parsed.bridge,
        trust_domain=parsed.trust_domain,
        validity=timedelta(days=parsed.days),
        now=datetime.now(UTC),
        pem=parsed.pem,
    )
    return _tell(written, parsed.ca_dir)


def _server_certificate(parsed: argparse.Namespace) -> int:
    from cloudprovider.cli import tenant  # noqa: PLC0415

    validity = timedelta(days=parsed.days)
    if parsed.ca_dir is None:
        if parsed.pem:
            raise ConfigurationError("--pem needs --ca-dir: files come from a CA that is a folder")

        async def work(admin: "TenantAdmin", _: argparse.Namespace) -> None:
            await admin.server_certificate(parsed.hosts, validity=validity)

        return _on_host(parsed, work)
    written = tenant.issue_bridge(
        parsed.hosts, ca_folder=parsed.ca_dir, out=parsed.out, validity=validity, now=datetime.now(UTC), pem=parsed.pem
    )
    return _tell(written, parsed.ca_dir)


def _tell(written: "Written", ca: Path | None = None) -> int:
    lines = [f"a new CA is in {ca}: keep it safe"] if written.ca_is_new else []
    lines += [f"on the host:  kubectl apply -f {path}" for path in written.host]
    lines += [f"in the guest: kubectl apply -f {path}" for path in written.guest]
    lines += [f"written: {path}" for path in written.pem]
    print("\n".join(lines))  # noqa: T201
    return 0
