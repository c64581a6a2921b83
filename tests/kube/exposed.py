"""What a registry exposes, read by the reference parser."""

from prometheus_client.parser import text_string_to_metric_families

from cloudprovider.kube.registry import Registry

Labels = tuple[tuple[str, str], ...]


def parsed(text: str) -> dict[tuple[str, Labels], float]:
    """Values by the sample's name and its labels, sorted."""
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


async def exposed(registry: Registry) -> dict[tuple[str, Labels], float]:
    """All that is exposed now."""
    return parsed((await registry.text()).decode())
