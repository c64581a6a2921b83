"""User data for the servers of an RKE2 guest: cloud-init puts what a tenant's guest needs where RKE2 applies it.

RKE2 applies every file in its manifests folder when it starts, and again when one changes
(https://docs.rke2.io/helm). That takes nothing back that the guest's program writes: a renewed certificate has a Secret
of its own.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import yaml

from cloudprovider.cli.crds import dump
from cloudprovider.cli.tenant import Document
from cloudprovider.core.errors import ConfigurationError

MANIFEST: Final = "/var/lib/rancher/rke2/server/manifests/cloudprovider-guest.yaml"
CONFIG: Final = "/etc/rancher/rke2/config.yaml.d/90-cloudprovider.yaml"
_OWN: Final = {"cloud-provider-name": ""}
"""RKE2's own cloud controller, which sees to nodes alone: "harvester" would install Harvester's as well, and two must
not handle one Service. The file's name has it read after Rancher's (50-rancher.yaml): the last word counts."""


def read_objects(path: Path) -> Sequence[Document]:
    """Return what a rendered manifest holds, as ``kubectl kustomize`` prints it. Raises ConfigurationError."""
    try:
        documents = [d for d in yaml.safe_load_all(path.read_text()) if d is not None]
    except OSError as e:
        raise ConfigurationError(f"{path}: {e.strerror}") from e
    except (yaml.YAMLError, UnicodeDecodeError) as e:
        raise ConfigurationError(f"{path} is not YAML: {' '.join(str(e).split())}") from e
    if not documents or not all(isinstance(d, dict) and d.get("kind") for d in documents):
        raise ConfigurationError(
            f"{path} holds no Kubernetes objects: make it by kubectl kustomize manifests/overlays/mine/guest > {path}"
        )
    return documents


def user_data(objects: Sequence[Document]) -> str:
    """Return the cloud-config that has RKE2 apply ``objects`` and leaves Harvester's own cloud provider out."""
    files: list[dict[str, Any]] = [
        {"path": MANIFEST, "owner": "root:root", "permissions": "0600", "content": dump(*objects)},
        {"path": CONFIG, "owner": "root:root", "permissions": "0600", "content": dump(_OWN)},
    ]
    return "#cloud-config\n" + yaml.dump({"write_files": files}, Dumper=_Dumper, sort_keys=False, width=120)


class _Dumper(yaml.SafeDumper):
    """Texts of several lines as they are, for people to read."""


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    style = "|" if "\n" in value else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)


_Dumper.add_representer(str, _text)
