"""What the Grafana dashboard shows: rows of panels, each a few queries. ``generate.py`` writes it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

Json = dict[str, object]

_WIDTH: Final = 24
_HEIGHT: Final = 8
_SOURCE: Final = {"type": "prometheus", "uid": "${datasource}"}


@dataclass(frozen=True)
class Panel:
    """``queries``: PromQL and the legend of each. ``unit`` as Grafana names it. ``about``: what to see in it."""

    title: str
    unit: str
    queries: Sequence[tuple[str, str]]
    about: str = ""
    stacked: bool = False


def _quantiles(metric: str, by: str = "") -> list[tuple[str, str]]:
    """The median and the 95th percentile of a histogram."""
    legend = f" {{{{{by}}}}}" if by else ""
    labels = f"le, {by}" if by else "le"
    return [
        (f"histogram_quantile({q}, sum by ({labels}) (rate({metric}_bucket[$__rate_interval])))", f"{name}{legend}")
        for q, name in ((0.5, "median"), (0.95, "95 %"))
    ]


def _rate(metric: str, *by: str, where: str = "") -> tuple[str, str]:
    chosen = f"{{{where}}}" if where else ""
    return (
        f"sum by ({', '.join(by)}) (rate({metric}{chosen}[$__rate_interval]))",
        " ".join(f"{{{{{label}}}}}" for label in by),
    )


_EVERY: Final = "[$__rate_interval]"
_ADDRESSES = [
    Panel(
        "Time to address: Services",
        "s",
        _quantiles("cloudprovider_guest_time_to_address_seconds"),
        "In a guest cluster, from the first sight of a Service to its address in the status.",
    ),
    Panel(
        "Time to address and to ready: load balancers",
        "s",
        [
            (query, f"{what} {legend}")
            for what in ("address", "ready")
            for query, legend in _quantiles(f"cloudprovider_host_time_to_{what}_seconds")
        ],
    ),
    Panel(
        "Services by state",
        "none",
        [("sum by (state, reason) (cloudprovider_guest_services)", "{{state}} {{reason}}")],
        stacked=True,
    ),
    Panel(
        "Load balancers by state",
        "none",
        [("sum by (state, reason) (cloudprovider_host_load_balancers)", "{{state}} {{reason}}")],
        stacked=True,
    ),
    Panel("Keys that wait", "none", [("sum by (queue) (cloudprovider_queue_depth)", "{{queue}}")]),
    Panel("Age of the oldest key", "s", [("max by (queue) (cloudprovider_queue_oldest_age_seconds)", "{{queue}}")]),
    Panel(
        "Failing keys and retries",
        "none",
        [
            ("sum by (queue) (cloudprovider_queue_failing)", "{{queue}} failing"),
            ("sum by (queue) (increase(cloudprovider_queue_retries_total[5m]))", "{{queue}} retries in 5 min"),
        ],
    ),
]
_POOLS = [
    Panel(
        "Share of addresses that are left",
        "percentunit",
        [("cloudprovider_host_pool_addresses_available / cloudprovider_host_pool_addresses", "{{pool}}")],
    ),
    Panel("Addresses allocated", "none", [("cloudprovider_host_pool_addresses_allocated", "{{pool}}")], stacked=True),
    Panel("Writes of IPBlocks", "ops", [_rate("cloudprovider_host_block_writes_total", "outcome")]),
    Panel(
        "Admission reviews",
        "ops",
        [_rate("cloudprovider_host_admission_reviews_total", "resource", "outcome")],
    ),
    Panel("Admission: duration", "s", _quantiles("cloudprovider_host_admission_review_duration_seconds", "resource")),
]
_BRIDGE = [
    Panel(
        "Connected guest clusters",
        "none",
        [
            ("sum(cloudprovider_host_guest_connected)", "connected"),
            ("cloudprovider_host_guest_clusters", "known"),
            ("sum(cloudprovider_guest_bridge_connected)", "guests that hear the host"),
        ],
    ),
    Panel("Calls served", "ops", [_rate("cloudprovider_host_bridge_calls_total", "method", "code")]),
    Panel("Duration of calls served", "s", _quantiles("cloudprovider_host_bridge_call_duration_seconds", "method")),
    Panel(
        "Busiest guest clusters",
        "ops",
        [
            (
                "topk(10, sum by (tenant) (rate(cloudprovider_host_tenant_bridge_calls_total[$__rate_interval])))",
                "{{tenant}}",
            )
        ],
    ),
    Panel("Calls made by guests", "ops", [_rate("cloudprovider_guest_bridge_calls_total", "method", "code")]),
    Panel("Duration of guests' calls", "s", _quantiles("cloudprovider_guest_bridge_call_duration_seconds", "method")),
    Panel(
        "Certificates: time that is left",
        "s",
        [
            ("cloudprovider_host_bridge_certificate_expiry_timestamp_seconds - time()", "bridge"),
            ("cloudprovider_host_webhook_certificate_expiry_timestamp_seconds - time()", "webhook"),
            (
                "bottomk(10, cloudprovider_host_tenant_certificate_expiry_timestamp_seconds - time())",
                "tenant {{tenant}}",
            ),
            ("cloudprovider_guest_bridge_certificate_expiry_timestamp_seconds - time()", "this guest"),
        ],
    ),
]
_DATA_PLANE = [
    Panel(
        "Addresses by state",
        "none",
        [("sum by (network, state) (cloudprovider_agent_addresses)", "{{network}} {{state}}")],
    ),
    Panel(
        "Hosts",
        "none",
        [
            ("min by (network, host) (cloudprovider_agent_host_up)", "{{host}} heard on {{network}}"),
            ("sum by (other) (increase(cloudprovider_agent_takeovers_total[5m]))", "taken from one {{other}}"),
        ],
        "Load balancers taken from another host in five minutes.",
    ),
    Panel("Listeners", "none", [("sum by (network) (cloudprovider_agent_listeners)", "{{network}}")]),
    Panel("Change to kernel", "s", _quantiles("cloudprovider_agent_kernel_apply_duration_seconds", "network")),
    Panel("Full read-back", "s", _quantiles("cloudprovider_agent_kernel_read_back_duration_seconds", "network")),
    Panel(
        "Trouble",
        "none",
        [
            ("sum by (network, what) (increase(cloudprovider_agent_repairs_total[5m]))", "{{network}} {{what}} mended"),
            ("sum by (network) (increase(cloudprovider_agent_kernel_refusals_total[5m]))", "{{network}} refused"),
            ("sum by (network) (increase(cloudprovider_agent_address_conflicts_total[5m]))", "{{network}} conflicts"),
            ("sum by (network) (increase(cloudprovider_agent_foreign_claims_total[5m]))", "{{network}} claims"),
            ("sum by (network) (increase(cloudprovider_agent_frames_returned_total[5m]))", "{{network}} returned"),
        ],
        "In five minutes.",
    ),
    *(
        Panel(
            f"Busiest load balancers: {title}",
            unit,
            [
                (
                    f"topk(10, sum by (load_balancer) (rate(cloudprovider_agent_client_{what}_total{_EVERY})))",
                    "{{load_balancer}}",
                )
            ],
        )
        for what, title, unit in (
            ("bytes", "bytes", "Bps"),
            ("packets", "packets", "pps"),
            ("connections", "connections", "cps"),
        )
    ),
    Panel(
        "Busiest nodes: bytes",
        "Bps",
        [("topk(10, sum by (node) (rate(cloudprovider_agent_node_bytes_total[$__rate_interval])))", "{{node}}")],
    ),
    Panel(
        "DHCP leases",
        "none",
        [("sum by (network, state) (cloudprovider_agent_dhcp_leases)", "{{network}} {{state}}")],
    ),
    Panel(
        "DHCP messages",
        "ops",
        [
            _rate("cloudprovider_agent_dhcp_messages_total", "direction", "type"),
            _rate("cloudprovider_agent_dhcp_dropped_total", "reason"),
        ],
    ),
]
_CHECKS = [
    Panel(
        "Backends by health", "none", [("sum by (health) (cloudprovider_agent_backends)", "{{health}}")], stacked=True
    ),
    Panel("Nodes left out", "none", [("sum by (network) (cloudprovider_agent_nodes_failing)", "{{network}}")]),
    Panel("Probes", "ops", [_rate("cloudprovider_agent_probes_total", "kind", "result")]),
]
_PROGRAMS = [
    Panel(
        "Who leads and serves",
        "none",
        [
            ("cloudprovider_host_leader", "host {{instance}}"),
            ("cloudprovider_guest_leader", "guest {{instance}}"),
            ("cloudprovider_agent_serving", "agent {{instance}}"),
        ],
    ),
    Panel(
        "Memory",
        "bytes",
        [
            (
                "process_resident_memory_bytes * on (instance) group_left (program, version) cloudprovider_build_info",
                "{{program}} {{version}} {{instance}}",
            )
        ],
    ),
    Panel(
        "CPU",
        "percentunit",
        [
            (
                "rate(process_cpu_seconds_total[5m]) * on (instance) group_left (program) cloudprovider_build_info",
                "{{program}} {{instance}}",
            )
        ],
    ),
    Panel("Requests to the API server", "reqps", [_rate("cloudprovider_kube_requests_total", "verb", "code")]),
    Panel("Duration of requests", "s", _quantiles("cloudprovider_kube_request_duration_seconds", "verb")),
    Panel(
        "Console",
        "none",
        [
            ("sum(cloudprovider_console_sessions)", "signed in"),
            ("sum(cloudprovider_console_streams)", "live pages"),
        ],
    ),
    Panel("Console: requests", "reqps", [_rate("cloudprovider_console_requests_total", "route", "code")]),
    Panel("Console: duration", "s", _quantiles("cloudprovider_console_request_duration_seconds", "route")),
]
ROWS: Final = {
    "Are Services getting addresses": _ADDRESSES,
    "Pools": _POOLS,
    "Bridge": _BRIDGE,
    "Data plane": _DATA_PLANE,
    "Checks": _CHECKS,
    "Programs": _PROGRAMS,
}


def dashboard() -> Json:
    """Return it as Grafana imports it."""
    panels: list[Json] = []
    y = 0
    for title, row in ROWS.items():
        panels.append({"type": "row", "title": title, "collapsed": False, "gridPos": _place(0, y, _WIDTH, 1)})
        y += 1
        for begin in range(0, len(row), 3):
            part = row[begin : begin + 3]
            width = _WIDTH // len(part)
            panels += [_panel(panel, _place(n * width, y, width, _HEIGHT)) for n, panel in enumerate(part)]
            y += _HEIGHT
    for number, made in enumerate(panels, 1):
        made["id"] = number
    variable = {"name": "datasource", "type": "datasource", "query": "prometheus", "label": "Prometheus"}
    return {
        "title": "Load balancers",
        "uid": "cloudprovider",
        "tags": ["cloudprovider"],
        "schemaVersion": 39,
        "editable": True,
        "refresh": "30s",
        "time": {"from": "now-6h", "to": "now"},
        "templating": {"list": [variable]},
        "panels": panels,
    }


def _place(x: int, y: int, width: int, height: int) -> Json:
    return {"x": x, "y": y, "w": width, "h": height}


def _panel(panel: Panel, place: Json) -> Json:
    custom: Json = {"fillOpacity": 20, "stacking": {"mode": "normal"}} if panel.stacked else {"fillOpacity": 5}
    return {
        "type": "timeseries",
        "title": panel.title,
        "description": panel.about,
        "datasource": _SOURCE,
        "gridPos": place,
        "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0, "custom": custom}, "overrides": []},
        "options": {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi"}},
        "targets": [
            {"refId": chr(ord("A") + n), "expr": query, "legendFormat": legend, "datasource": _SOURCE}
            for n, (query, legend) in enumerate(panel.queries)
        ],
    }
