"""Writes the PrometheusRule objects (of the rules files) and the dashboard into manifests/components/monitoring."""

import json
import sys
from pathlib import Path
from typing import Final

import yaml

sys.path.insert(0, str(Path(__file__).parents[2]))  # run as a script

from manifests.monitoring.dashboard import dashboard

COMPONENTS: Final = Path(__file__).parents[1] / "components" / "monitoring"
SIDES: Final = ("host", "guest")


def written() -> dict[Path, str]:
    """Return what belongs into which file."""
    found = {COMPONENTS / side / "prometheusrule.yaml": prometheus_rule(side) for side in SIDES}
    found[COMPONENTS / "dashboard" / "cloudprovider.json"] = json.dumps(dashboard(), indent=1) + "\n"
    return found


def prometheus_rule(side: str) -> str:
    """Return the rules file of a side as an object for the Prometheus operator."""
    rules = (COMPONENTS / side / "rules.yaml").read_text(encoding="utf-8").partition("groups:\n")[2]
    indented = "".join(f"  {line}" for line in rules.splitlines(keepends=True))
    head = {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {
            "name": f"cloudprovider-{side}",
            "namespace": "cloudprovider-system",
            "labels": {"app.kubernetes.io/part-of": "cloudprovider"},
        },
    }
    top = yaml.safe_dump(head, sort_keys=False)
    return f"# Made of rules.yaml: make generate.\n{top}spec:\n  groups:\n{indented}"


if __name__ == "__main__":
    for path, text in written().items():
        path.write_text(text, encoding="utf-8")
