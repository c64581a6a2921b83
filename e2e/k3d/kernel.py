"""What the hosts' kernels do, as told from within the agents' pods: rules by libnftables, all else by /proc."""

import json
from dataclasses import replace
from datetime import datetime
from typing import Final

from e2e.k3d.installation import SYSTEM
from e2e.k3d.machines import Cluster
from tests.lab.process import LabError
from tests.lab.snapshot import Kernel, kernel_of

NAMESPACE: Final = "/run/netns/lb-default-mgmt"
BALANCERS: Final = "/apis/loadbalancer.harvesterhci.io/v1beta1/loadbalancers"
SCRIPT: Final = f"""
import ctypes, json, os, re, sys
try:
    handle = os.open({NAMESPACE!r}, os.O_RDONLY)
except FileNotFoundError:
    print(json.dumps(None))
    sys.exit()
if ctypes.CDLL(None, use_errno=True).setns(handle, 0x40000000):
    sys.exit(os.strerror(ctypes.get_errno()))
nft = ctypes.CDLL("libnftables.so.1")
nft.nft_ctx_new.restype = nft.nft_ctx_get_output_buffer.restype = ctypes.c_void_p
context = ctypes.c_void_p(nft.nft_ctx_new(0))
nft.nft_ctx_output_set_flags(context, 1 << 4)  # JSON
nft.nft_ctx_buffer_output(context)
if nft.nft_run_cmd_from_buffer(context, b"list ruleset"):
    sys.exit("list ruleset failed")
nft.nft_ctx_get_output_buffer.restype = ctypes.c_char_p
ruleset = json.loads(nft.nft_ctx_get_output_buffer(context))["nftables"]
trie = open("/proc/thread-self/net/fib_trie").read()
addresses = set(re.findall(r"-- (\\S+)\\n +/32 host LOCAL", trie))
arp = [line.split() for line in open("/proc/thread-self/net/arp")][1:]
fixed = {{fields[0]: fields[3] for fields in arp if int(fields[2], 16) & 4}}  # ATF_PERM (net/if_arp.h)
print(json.dumps({{"ruleset": ruleset, "addresses": sorted(addresses), "fixed": fixed}}))
"""


def agents(host: Cluster) -> dict[str, str]:
    """The agents' running pods, by node."""
    pods = host.api.items(
        "/api/v1/namespaces/cloudprovider-system/pods", labelSelector="app.kubernetes.io/name=cloudprovider-agent"
    )
    return {
        pod["spec"]["nodeName"]: pod["metadata"]["name"]
        for pod in pods
        if pod["status"]["phase"] == "Running" and "deletionTimestamp" not in pod["metadata"]
    }


def read(host: Cluster, pod: str, own: set[str]) -> Kernel | None:
    """One node's; None where it has no namespace of ours. ``own``: the agents' own addresses.

    Raises OSError where the pod can't be asked now: its object may outlive it by a minute where a node has died.
    """
    try:
        told = json.loads(host.kubectl("exec", SYSTEM, pod, "--", "python3", "-c", SCRIPT))
    except LabError as error:
        raise ConnectionError(f"{pod} can't be asked about its kernel: {error}") from error
    if told is None:
        return None
    addresses = {address for address in told["addresses"] if not address.startswith("127.")}
    return replace(kernel_of(addresses - own, told["ruleset"]), fixed=told["fixed"])


def holder(host: Cluster, address: str) -> str:
    """The node that has an address, as its load balancer says; "" if none does."""
    for balancer in host.api.items(BALANCERS):
        held = balancer.get("status", {}).get("holder", {})
        if address in held.get("addresses", []):
            return str(held["node"])
    return ""


def death_known_at(host: Cluster, node: str, dead: str, since: float) -> float:
    """When a node's agent has learned by BFD that another node is dead, after a time (both of time.time()); raises
    AssertionError while it has not."""
    for line in host.kubectl("logs", SYSTEM, agents(host)[node]).splitlines():
        said = json.loads(line)
        if said["message"] == "hosts are dead or cut off" and dead in said["hosts"]:
            at = datetime.fromisoformat(said["time"]).timestamp()
            if at >= since:
                return at
    raise AssertionError(f"{node} has not noticed {dead}'s death")


def read_all(host: Cluster, own: set[str]) -> tuple[Kernel, dict[str, str]]:
    """What the nodes' kernels have: the rules, which all have alike, with the addresses of all; and which node has each
    address. Raises AssertionError while two have one, as for a moment when it moves."""
    found = {node: read(host, pod, own) for node, pod in agents(host).items()}
    up: dict[str, str] = {}
    for node, kernel in found.items():
        for address in kernel.addresses if kernel is not None else ():
            if address in up:
                raise AssertionError(f"{address} is on {node} and {up[address]}")
            up[address] = node
    some = next((kernel for kernel in found.values() if kernel is not None), Kernel())
    return replace(some, addresses=set(up)), up
