"""What the host program counts, in Prometheus' text format."""

import time
from collections.abc import Mapping
from datetime import datetime

from cloudprovider.host.assembly import Host


def exposition_of(host: Host | None, *, serving: bool, certificate_ends: datetime | None = None) -> str:
    """Return the metrics of a program that leads with ``host``, or stands by."""
    lines: list[str] = []

    def gauge(name: str, text: str, *samples: tuple[str, float]) -> None:
        full = f"cloudprovider_host_{name}"
        lines.extend((f"# HELP {full} {text}", f"# TYPE {full} gauge"))
        lines.extend(f"{full}{labels} {value:.15g}" for labels, value in samples)

    gauge("leader", "1 while this copy leads.", ("", float(host is not None)))
    gauge("bridge_serving", "1 while the bridge listens.", ("", float(serving)))
    if certificate_ends is not None:
        text = "When the bridge's certificate ends, in seconds since 1970."
        gauge("certificate_expiry_timestamp_seconds", text, ("", certificate_ends.timestamp()))
    gauge("process_cpu_seconds", "CPU time of this process.", ("", time.process_time()))
    if host is not None:
        stats = host.controller.load_balancers.queue.stats
        gauge("load_balancers", "Load balancers on the host.", ("", float(len(host.caches.load_balancers.objects))))
        gauge("guest_clusters", "Tenants.", ("", float(len(host.caches.guest_clusters.objects))))
        gauge("queue_ready", "Load balancers waiting to be worked on.", ("", float(stats.ready)))
        gauge("queue_failing", "Load balancers whose last work failed.", ("", float(stats.failing)))
        pools = host.caches.pools.objects.values()
        gauge(
            "pool_available",
            "Addresses that a pool can still give.",
            *((f'{{pool="{p.metadata.name}"}}', float(p.status.available)) for p in pools),
        )
    return "\n".join(lines) + "\n"


def exposition_of_reviews(reviews: Mapping[tuple[str, str], int]) -> str:
    """Return how often the admission webhook was asked, by (resource, outcome)."""
    name = "cloudprovider_host_admission_reviews_total"
    lines = [f"# HELP {name} Changes judged by the admission webhook.", f"# TYPE {name} counter"]
    lines += [
        f'{name}{{resource="{resource}",outcome="{outcome}"}} {count}'
        for (resource, outcome), count in sorted(reviews.items())
    ]
    return "\n".join(lines) + "\n"
