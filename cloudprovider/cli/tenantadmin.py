"""``cloudprovider tenant`` on a host cluster: what an operator does to tenants, by the operator's own rights there.

The CA is a Secret in the host's own namespace, made when it is first needed; who keeps it off the cluster names a
folder instead. The time that counts is the API server's, as the bridge and the guests go by a cluster's clock too.
"""

import base64
import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final, Protocol

from cryptography import x509

from cloudprovider.bridge import authority
from cloudprovider.bridge.authority import CERTIFICATE, KEY, TRUSTED, Authority
from cloudprovider.bridge.certificates import KeyPair, issue_server, issue_tenant
from cloudprovider.bridge.inspection import certificates, keys_of
from cloudprovider.bridge.secrets import is_kept_by_cert_manager, text
from cloudprovider.cli.tenant import Document, TenantLimits, open_ca
from cloudprovider.core.api.guestcluster import GuestCluster, GuestClusterSpec
from cloudprovider.core.api.kubernetes import Namespace, Secret
from cloudprovider.core.api.loadbalancer import LoadBalancer
from cloudprovider.core.api.meta import ObjectMeta
from cloudprovider.core.errors import AlreadyExists, ConfigurationError, Forbidden, NotFound
from cloudprovider.core.exchange import Tenant
from cloudprovider.core.lbobject import service_of
from cloudprovider.core.naming import CA_SECRET, SERVER_SECRET
from cloudprovider.core.permissions import SYSTEM
from cloudprovider.core.tenants import has_older_certificate, revocation
from cloudprovider.kube.api import KubeClient, Reader
from cloudprovider.kube.resources import GUESTCLUSTERS, LOADBALANCERS, NAMESPACES, SECRETS

_DATE: Final = "%Y-%m-%dT%H:%M:%SZ"


class Cluster(KubeClient, Reader, Protocol):
    """An API server, and what it says beside its objects."""


@dataclass(frozen=True)
class Issued:
    """A certificate with its key, and the CAs (PEM) that whoever gets it is to trust."""

    pair: KeyPair
    trusted: bytes


class TenantAdmin:
    """``folder``: where the CA is, if not on the cluster. ``tell`` is handed a line for what has been done."""

    def __init__(
        self,
        client: Cluster,
        *,
        folder: Path | None,
        trust_domain: str,
        clock: Callable[[], datetime],
        tell: Callable[[str], None],
    ) -> None:
        self._client = client
        self._folder = folder
        self._trust_domain = trust_domain
        self._clock = clock
        self._tell = tell

    async def now(self) -> datetime:
        """The API server's time; where it does not say, this machine's."""
        return (await self._client.read("/version")).date or self._clock()

    async def create(
        self, tenant: Tenant, limits: TenantLimits, *, validity: timedelta, create_namespace: bool = False
    ) -> Issued:
        """Make the tenant's objects where they are not there yet, and issue its certificate: a run that was broken off
        may be run again. Raises KubeError, ConfigurationError."""
        ca = await self._trusted_authority()
        if create_namespace:
            await self._make_namespace(tenant.namespace)
        cluster = await self._make_guest_cluster(tenant, limits)
        return await self._issue(ca, cluster, validity)

    async def rotate(self, tenant: Tenant, *, validity: timedelta) -> Issued:
        """Issue another certificate; the ones before stay valid. Raises KubeError, ConfigurationError."""
        cluster = await self._guest_cluster(tenant)
        return await self._issue(await self._trusted_authority(), cluster, validity)

    async def revoke(self, tenant: Tenant, *, delete_load_balancers: bool) -> None:
        """Have the host refuse every certificate of the tenant that has been issued until now; what is forwarded goes
        on, unless it is to be deleted. Raises KubeError, ConfigurationError."""
        cluster = await self._guest_cluster(tenant)
        until = revocation(cluster, await self.now())
        patch = {"metadata": {"uid": cluster.metadata.uid}, "spec": {"revokedBefore": f"{until:{_DATE}}"}}
        await self._client.merge_patch(GUESTCLUSTERS, *cluster.key, patch)
        self._tell(f"{tenant.path}: every certificate issued until now is refused, and connections have been cut")
        theirs = [lb for lb in (await self._client.list(LOADBALANCERS, tenant.namespace)).items if _is_of(lb, tenant)]
        if not delete_load_balancers:
            if theirs:
                self._tell(f"{len(theirs)} load balancers go on as they are; --delete-load-balancers ends them too")
            return
        for lb in theirs:
            try:
                await self._client.delete(LOADBALANCERS, *lb.key, uid=lb.metadata.uid)
            except NotFound:
                continue
        self._tell(f"{len(theirs)} load balancers deleted: their addresses go back to the pools")

    async def tenants(self, namespace: str) -> Sequence[GuestCluster]:
        """Return those of ``namespace``; empty: all. Raises KubeError."""
        try:
            return sorted((await self._client.list(GUESTCLUSTERS, namespace)).items, key=lambda c: c.key)
        except NotFound as e:
            raise _no_host() from e

    async def server_certificate(self, hosts: Sequence[str], *, validity: timedelta) -> None:
        """Issue the bridge's certificate, and put it where the host's program finds it; one that runs takes it up.

        Raises KubeError, ConfigurationError."""
        ca = await self._authority()
        pair = issue_server(ca.serving, hosts, now=await self.now(), validity=validity)
        parts = {CERTIFICATE: pair.certificate, KEY: pair.key, TRUSTED: ca.trusted}
        await self._put(SERVER_SECRET, "kubernetes.io/tls", parts)
        self._tell(f"the bridge's certificate is in the Secret {SYSTEM}/{SERVER_SECRET}, for {', '.join(hosts)}")

    async def replace_ca(self, *, finish: bool, force: bool = False) -> None:
        """Do the first step to a new CA, or (``finish``) the second; that only when the host and all guests know the
        new one, but for ``force``. Raises KubeError, ConfigurationError."""
        where = f"Secret {SYSTEM}/{CA_SECRET}"
        try:
            secret = await self._client.get(SECRETS, SYSTEM, CA_SECRET)
        except NotFound as e:
            raise ConfigurationError(f"there is no {where}: this host's CA is kept elsewhere") from e
        if is_kept_by_cert_manager(secret):
            raise ConfigurationError(f"cert-manager keeps {where}: replace the CA there")
        ca = authority.read(secret.data, where)
        if finish and not authority.is_being_replaced(ca):
            raise ConfigurationError("no CA is being replaced: begin with cloudprovider tenant replace-ca")
        if not finish and authority.is_being_replaced(ca):
            raise ConfigurationError(
                "a CA is being replaced already: end that with cloudprovider tenant replace-ca --finish"
            )
        if finish and not force:
            await self._all_know(certificates(ca.signing.certificate)[0])
        new = authority.settled(ca) if finish else authority.replaced(ca, await self.now())
        data: dict[str, str | None] = dict.fromkeys(secret.data)  # what is not in it any more goes
        patch = {
            "metadata": {"resourceVersion": secret.metadata.resource_version},
            "data": data | authority.data_of(new),
        }
        await self._client.merge_patch(SECRETS, SYSTEM, CA_SECRET, patch)
        if finish:
            self._tell("the old CA is gone: guests whose certificates it had signed are refused within two minutes")
        else:
            self._tell(
                "a new CA signs tenants' certificates, the old one is trusted beside it; guests come for theirs within"
                " an hour or so; then replace-ca --finish"
            )

    async def _all_know(self, new: x509.Certificate) -> None:
        """Raises ConfigurationError if the host, or a guest, would be lost without the old CA."""
        bridges = await self._bridges_trust()
        if bridges is not None and new not in bridges:
            raise ConfigurationError(
                f"the host's program has not put the new CA into the Secret {SYSTEM}/{SERVER_SECRET} yet: see that it"
                " runs, and come again in a minute"
            )
        late = [c for c in await self.tenants("") if has_older_certificate(c, new.not_valid_before_utc)]
        if late:
            names = ", ".join("/".join(c.key) for c in late)
            raise ConfigurationError(
                f"the last certificates seen of {names} are by the old CA: such a guest would be locked out until"
                " cloudprovider tenant rotate; wait for it, or add --force"
            )

    async def _bridges_trust(self) -> Sequence[x509.Certificate] | None:
        """The CAs in the bridge's Secret; None: there is none yet, or it is not for us to see."""
        try:
            data = (await self._client.get(SECRETS, SYSTEM, SERVER_SECRET)).data
            return certificates(base64.b64decode(data.get(TRUSTED, ""), validate=True))
        except (NotFound, Forbidden, ValueError):
            return None

    # --- steps -----------------------------------------------------------------------------------------------------

    async def _issue(self, ca: Authority, cluster: GuestCluster, validity: timedelta) -> Issued:
        revoked = cluster.spec.revoked_before
        try:
            not_before = datetime.fromisoformat(revoked) if revoked else None
        except ValueError as e:
            raise ConfigurationError(
                f"GuestCluster spec.revokedBefore is no date, {revoked!r}: set it right first"
            ) from e
        now = await self.now()
        if not_before is not None and not_before > now + timedelta(minutes=5):
            raise ConfigurationError(
                f"the tenant's certificates are revoked until {revoked} (GuestCluster spec.revokedBefore): set that"
                " right first, or wait"
            )
        pair = issue_tenant(
            ca.signing,
            Tenant(*cluster.key),
            self._trust_domain,
            now=now,
            validity=validity,
            not_before=not_before,
        )
        return Issued(pair, ca.trusted)

    async def _trusted_authority(self) -> Authority:
        """The CA for tenants' certificates. Raises ConfigurationError if the bridge trusts another one."""
        bridges = await self._bridges_trust()
        if bridges is None:
            return await self._authority()
        if self._folder is None:
            try:
                await self._client.get(SECRETS, SYSTEM, CA_SECRET)
            except NotFound as e:
                raise _other_ca() from e
        ca = await self._authority()
        if not keys_of(bridges) & keys_of(certificates(ca.trusted)):
            raise _other_ca()
        return ca

    async def _authority(self) -> Authority:
        if self._folder is not None:
            pair, is_new = open_ca(self._folder, now=await self.now())
            if is_new:
                self._tell(f"a new CA is in {self._folder}: keep it safe")
            return authority.of(pair)
        where = f"Secret {SYSTEM}/{CA_SECRET}"
        try:
            found = await self._client.get(SECRETS, SYSTEM, CA_SECRET)
        except NotFound:
            await self._have_namespace()
            made = authority.make(await self.now())
            metadata = ObjectMeta(name=CA_SECRET, namespace=SYSTEM)
            secret = Secret(metadata=metadata, type="kubernetes.io/tls", data=authority.data_of(made))
            try:
                await self._client.create(SECRETS, secret)
            except AlreadyExists:  # somebody else has made it at the same moment
                found = await self._client.get(SECRETS, SYSTEM, CA_SECRET)
            else:
                self._tell(f"a new CA is in the {where}: whoever reads that can be any guest")
                return made
        return authority.read(found.data, where)

    async def _have_namespace(self) -> None:
        try:
            await self._client.get(NAMESPACES, "", SYSTEM)
        except NotFound as e:
            raise ConfigurationError(
                f"this cluster has no namespace {SYSTEM}: is it the host (--context)? First"
                " kubectl apply -f manifests/host/namespace.yaml"
            ) from e

    async def _make_namespace(self, name: str) -> None:
        try:
            await self._client.create(NAMESPACES, Namespace(metadata=ObjectMeta(name=name)))
        except AlreadyExists:
            return
        self._tell(f"namespace {name} created")

    async def _make_guest_cluster(self, tenant: Tenant, limits: TenantLimits) -> GuestCluster:
        spec = GuestClusterSpec(
            node_cidrs=list(limits.node_cidrs), networks=list(limits.networks), pools=list(limits.pools)
        )
        metadata = ObjectMeta(name=tenant.cluster, namespace=tenant.namespace)
        try:
            made = await self._client.create(GUESTCLUSTERS, GuestCluster(metadata=metadata, spec=spec))
        except AlreadyExists:
            there = await self._client.get(GUESTCLUSTERS, tenant.namespace, tenant.cluster)
            have = there.spec
            if (have.node_cidrs, have.networks, have.pools) != (spec.node_cidrs, spec.networks, spec.pools):
                raise ConfigurationError(
                    f"GuestCluster {tenant.path} is there already, with other limits: change them by kubectl edit, and"
                    f" have a certificate issued by cloudprovider tenant rotate {tenant.cluster}"
                ) from None
            if there.metadata.deletion_timestamp:
                raise ConfigurationError(f"GuestCluster {tenant.path} is being deleted: wait for its end") from None
            return there
        except NotFound as e:
            await self._explain(tenant)
            raise _no_host() from e
        self._tell(f"GuestCluster {tenant.path} created")
        return made

    async def _explain(self, tenant: Tenant) -> None:
        """What a create that found nothing means. Raises ConfigurationError if it is the namespace."""
        try:
            await self._client.get(NAMESPACES, "", tenant.namespace)
        except NotFound as e:
            raise ConfigurationError(
                f"the host has no namespace {tenant.namespace}: create it, or add --create-namespace"
            ) from e

    async def _guest_cluster(self, tenant: Tenant) -> GuestCluster:
        try:
            return await self._client.get(GUESTCLUSTERS, tenant.namespace, tenant.cluster)
        except NotFound as e:
            raise ConfigurationError(
                f"there is no GuestCluster {tenant.path} here: see cloudprovider tenant list, or make it by"
                " cloudprovider tenant create"
            ) from e

    async def _put(self, name: str, type_: str, parts: Mapping[str, bytes]) -> None:
        await put_secret(self._client, name, type_, {key: text(value) for key, value in parts.items()})


async def put_secret(client: KubeClient, name: str, type_: str, data: Mapping[str, str]) -> None:
    """Have the Secret hold ``data`` (base64) beside what it holds under other keys. Raises KubeError,
    ConfigurationError if cert-manager keeps it."""
    try:
        await client.create(
            SECRETS, Secret(metadata=ObjectMeta(name=name, namespace=SYSTEM), type=type_, data=dict(data))
        )
    except AlreadyExists:
        there = await client.get(SECRETS, SYSTEM, name)
        if is_kept_by_cert_manager(there):
            raise ConfigurationError(f"cert-manager keeps the Secret {SYSTEM}/{name}: change its Certificate") from None
        await client.merge_patch(SECRETS, SYSTEM, name, {"metadata": {"uid": there.metadata.uid}, "data": dict(data)})


async def put_guest(client: KubeClient, objects: tuple[Document, Document]) -> None:
    """Put what :func:`cloudprovider.cli.tenant.guest_objects` has made into a guest. Raises KubeError,
    ConfigurationError."""
    _, secret = objects
    with contextlib.suppress(AlreadyExists):
        await client.create(NAMESPACES, Namespace(metadata=ObjectMeta(name=SYSTEM)))
    await put_secret(client, secret["metadata"]["name"], secret["type"], secret["data"])


def _is_of(lb: LoadBalancer, tenant: Tenant) -> bool:
    found = service_of(lb)
    return found is not None and found[0] == tenant


def _other_ca() -> ConfigurationError:
    return ConfigurationError(
        f"the bridge's certificate (Secret {SYSTEM}/{SERVER_SECRET}) is by another CA, and would not take this one's:"
        " give that CA's folder (--ca-dir), or have the host keep it: kubectl"
        f" -n {SYSTEM} create secret tls {CA_SECRET} --cert=FOLDER/ca.crt --key=FOLDER/ca.key"
    )


def _no_host() -> ConfigurationError:
    return ConfigurationError(
        "this cluster knows no GuestCluster: is it the host (--context)? If so, cloudprovider crds |"
        " kubectl apply --server-side -f -"
    )
