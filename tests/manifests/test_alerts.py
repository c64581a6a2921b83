"""Each alert, by promtool: it fires on what it is for, and is quiet on what looks much like it."""

from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from manifests.monitoring.generate import COMPONENTS, SIDES
from tests.lab.promtool import promtool

DAY = 86400


@dataclass(frozen=True)
class Case:
    """Series of a minute's interval, as promtool writes them; after ``minutes`` the alert fires, or does not."""

    fires: dict[str, str]
    quiet: dict[str, str]
    minutes: int = 40


def buckets(metric: str, fast: str, slow: str) -> dict[str, str]:
    """A histogram with so many observations within a second, and above 32 s, a minute."""
    return {
        f'{metric}_bucket{{le="1.0"}}': fast,
        f'{metric}_bucket{{le="16.0"}}': fast,
        f'{metric}_bucket{{le="32.0"}}': slow,
        f'{metric}_bucket{{le="+Inf"}}': slow,
    }


def expiry(metric: str) -> Case:
    """promtool's clock begins at 0."""
    return Case({metric: f"{10 * DAY}x200"}, {metric: f"{20 * DAY}x200"}, 100)


LB = "cloudprovider_host_load_balancers"
POOL = 'cloudprovider_host_pool_addresses{pool="p"}'
LEFT = 'cloudprovider_host_pool_addresses_available{pool="p"}'
SERVED = "cloudprovider_host_bridge_calls_total"
CALLED = "cloudprovider_guest_bridge_calls_total"
REQUESTS = "cloudprovider_kube_requests_total"
NETWORK = 'instance="a",network="management"'

HOST = {
    "CloudProviderHostNotLeading": Case(
        {}, {'cloudprovider_host_leader{pod="a"}': "0x50", 'cloudprovider_host_leader{pod="b"}': "1x50"}
    ),
    "CloudProviderBridgeNotServing": Case(
        {"cloudprovider_host_leader": "1x50", "cloudprovider_host_bridge_serving": "0x50"},
        {"cloudprovider_host_leader": "0x50", "cloudprovider_host_bridge_serving": "0x50"},
    ),
    "CloudProviderNoAgentServes": Case(
        {'cloudprovider_agent_serving{pod="a"}': "0x50"},
        {'cloudprovider_agent_serving{pod="a"}': "0x50", 'cloudprovider_agent_serving{pod="b"}': "1x50"},
    ),
    "CloudProviderNetworkDown": Case(
        {f"cloudprovider_agent_network_up{{{NETWORK}}}": "0x50"},
        {f"cloudprovider_agent_network_up{{{NETWORK}}}": "0 1 0 1 0 1x45"},
    ),
    "CloudProviderAddressesSlow": Case(
        buckets("cloudprovider_host_time_to_address_seconds", "0+1x60", "0+10x60"),
        buckets("cloudprovider_host_time_to_address_seconds", "0+10x60", "0+10x60"),
    ),
    "CloudProviderLoadBalancersWithoutAddress": Case(
        {f'{LB}{{state="no_address",reason="PoolExhausted"}}': "2x50"},
        {f'{LB}{{state="no_address",reason="Pending"}}': "2x10 0x40", f'{LB}{{state="ready",reason="Ready"}}': "9x50"},
    ),
    "CloudProviderLoadBalancersNotReady": Case(
        {f'{LB}{{state="not_ready",reason="NoHealthyBackends"}}': "1x50"},
        {f'{LB}{{state="not_ready",reason="NoNodes"}}': "1x10 0x40"},
    ),
    "CloudProviderPoolNearlyFull": Case({POOL: "100x50", LEFT: "5x50"}, {POOL: "100x50", LEFT: "50x50"}),
    "CloudProviderPoolFull": Case({POOL: "100x50", LEFT: "0x50"}, {POOL: "0x50", LEFT: "0x50"}),
    "CloudProviderGuestNotConnected": Case(
        {'cloudprovider_host_guest_connected{tenant="t/c"}': "0x50"},
        {'cloudprovider_host_guest_connected{tenant="t/c"}': "0x5 1x45"},
    ),
    "CloudProviderTenantCertificateExpires": expiry(
        'cloudprovider_host_tenant_certificate_expiry_timestamp_seconds{tenant="t/c"}'
    ),
    "CloudProviderBridgeCertificateExpires": expiry("cloudprovider_host_bridge_certificate_expiry_timestamp_seconds"),
    "CloudProviderWebhookCertificateExpires": expiry("cloudprovider_host_webhook_certificate_expiry_timestamp_seconds"),
    "CloudProviderBridgeFails": Case(
        {
            f'{SERVED}{{method="EnsureLoadBalancer",code="OK"}}': "0+90x50",
            f'{SERVED}{{method="EnsureLoadBalancer",code="UNAVAILABLE"}}': "0+10x50",
        },
        {
            f'{SERVED}{{method="EnsureLoadBalancer",code="OK"}}': "0+90x50",
            f'{SERVED}{{method="EnsureLoadBalancer",code="INVALID_ARGUMENT"}}': "0+10x50",
            f'{SERVED}{{method="WatchLoadBalancers",code="UNAVAILABLE"}}': "0+90x50",
        },
    ),
    "CloudProviderAdmissionUnread": Case(
        {'cloudprovider_host_admission_reviews_total{resource="ippools",outcome="unread"}': "0+1x50"},
        {
            'cloudprovider_host_admission_reviews_total{resource="ippools",outcome="unread"}': "3x50",
            'cloudprovider_host_admission_reviews_total{resource="ippools",outcome="refused"}': "0+1x50",
        },
    ),
    "CloudProviderBlockConflicts": Case(
        {
            'cloudprovider_host_block_writes_total{outcome="written"}': "0+1x50",
            'cloudprovider_host_block_writes_total{outcome="conflict"}': "0+1x50",
        },
        {
            'cloudprovider_host_block_writes_total{outcome="written"}': "0+9x50",
            'cloudprovider_host_block_writes_total{outcome="conflict"}': "0+1x50",
        },
    ),
    "CloudProviderRulesTamperedWith": Case(
        {f'cloudprovider_agent_repairs_total{{{NETWORK},what="rules"}}': "0x30 1x20"},
        {f'cloudprovider_agent_repairs_total{{{NETWORK},what="rules"}}': "7x50"},
    ),
    "CloudProviderHostSilent": Case(
        {'cloudprovider_agent_host_up{network="management",host="h2",pod="a"}': "0x50"},
        {'cloudprovider_agent_host_up{network="management",host="h2",pod="a"}': "1 0 0 0 1x45"},
    ),
    "CloudProviderAddressConflict": Case(
        {
            f"cloudprovider_agent_address_conflicts_total{{{NETWORK}}}": "0x50",
            f"cloudprovider_agent_foreign_claims_total{{{NETWORK}}}": "0x30 1x20",
        },
        {
            f"cloudprovider_agent_address_conflicts_total{{{NETWORK}}}": "4x50",
            f"cloudprovider_agent_foreign_claims_total{{{NETWORK}}}": "0x50",
        },
    ),
    "CloudProviderLeasesTroubled": Case(
        {
            f'cloudprovider_agent_dhcp_leases{{{NETWORK},state="seeking"}}': "1x50",
            f'cloudprovider_agent_dhcp_leases{{{NETWORK},state="held"}}': "9x50",
        },
        {
            f'cloudprovider_agent_dhcp_leases{{{NETWORK},state="seeking"}}': "1x10 0x40",
            f'cloudprovider_agent_dhcp_leases{{{NETWORK},state="held"}}': "9x50",
        },
    ),
    "CloudProviderBackendsUnhealthy": Case(
        {
            'cloudprovider_agent_backends{health="unhealthy"}': "6x50",
            'cloudprovider_agent_backends{health="healthy"}': "4x50",
        },
        {
            'cloudprovider_agent_backends{health="unhealthy"}': "4x50",
            'cloudprovider_agent_backends{health="healthy"}': "6x50",
        },
    ),
    "CloudProviderHostQueueStuck": Case(
        {'cloudprovider_queue_oldest_age_seconds{instance="a",queue="load-balancers"}': "0+60x50"},
        {
            'cloudprovider_queue_oldest_age_seconds{instance="a",queue="load-balancers"}': "0.2x50",
            'cloudprovider_queue_oldest_age_seconds{instance="g",queue="services"}': "0+60x50",
        },
    ),
    "CloudProviderHostWorkFails": Case(
        {'cloudprovider_queue_failing{instance="a",queue="pools"}': "1x50"},
        {
            'cloudprovider_queue_failing{instance="a",queue="pools"}': "1x8 0x42",
            'cloudprovider_queue_failing{instance="g",queue="services"}': "1x50",
        },
    ),
    "CloudProviderHostKubeRequestsFail": Case(
        {
            f'{REQUESTS}{{instance="a",verb="get",resource="x",code="200"}}': "0+4x50",
            f'{REQUESTS}{{instance="a",verb="get",resource="x",code="503"}}': "0+1x50",
        },
        {
            f'{REQUESTS}{{instance="a",verb="get",resource="x",code="200"}}': "0+4x50",
            f'{REQUESTS}{{instance="a",verb="apply",resource="x",code="409"}}': "0+1x50",
        },
    ),
}
GUEST = {
    "CloudProviderGuestNotLeading": Case(
        {'cloudprovider_guest_leader{pod="a"}': "0x50"},
        {'cloudprovider_guest_leader{pod="a"}': "0x50", 'cloudprovider_guest_leader{pod="b"}': "1x50"},
    ),
    "CloudProviderHostNotReached": Case(
        {"cloudprovider_guest_bridge_connected": "0x50"}, {"cloudprovider_guest_bridge_connected": "1x36 0x14"}
    ),
    "CloudProviderServicesPending": Case(
        {'cloudprovider_guest_services{state="pending",reason="QuotaExceeded"}': "1x50"},
        {
            'cloudprovider_guest_services{state="pending",reason="Pending"}': "1x10 0x40",
            'cloudprovider_guest_services{state="ready",reason="AddressAssigned"}': "1x50",
        },
    ),
    "CloudProviderServicesSlow": Case(
        buckets("cloudprovider_guest_time_to_address_seconds", "0+1x60", "0+10x60"),
        buckets("cloudprovider_guest_time_to_address_seconds", "0+10x60", "0+10x60"),
    ),
    "CloudProviderClientCertificateExpires": expiry("cloudprovider_guest_bridge_certificate_expiry_timestamp_seconds"),
    "CloudProviderBridgeCallsFail": Case(
        {
            f'{CALLED}{{method="EnsureLoadBalancer",code="OK"}}': "0+4x50",
            f'{CALLED}{{method="ReportNodes",code="PERMISSION_DENIED"}}': "0+1x50",
        },
        {
            f'{CALLED}{{method="EnsureLoadBalancer",code="OK"}}': "0+4x50",
            f'{CALLED}{{method="WatchLoadBalancers",code="UNAVAILABLE"}}': "0+4x50",
        },
    ),
    "CloudProviderGuestQueueStuck": Case(
        {'cloudprovider_queue_oldest_age_seconds{instance="g",queue="services"}': "0+60x50"},
        {'cloudprovider_queue_oldest_age_seconds{instance="a",queue="pools"}': "0+60x50"},
    ),
    "CloudProviderGuestWorkFails": Case(
        {'cloudprovider_queue_failing{instance="g",queue="services"}': "1x50"},
        {'cloudprovider_queue_failing{instance="a",queue="pools"}': "1x50"},
    ),
    "CloudProviderGuestKubeRequestsFail": Case(
        {
            f'{REQUESTS}{{instance="g",verb="get",resource="x",code="200"}}': "0+4x50",
            f'{REQUESTS}{{instance="g",verb="get",resource="x",code="0"}}': "0+1x50",
        },
        {
            f'{REQUESTS}{{instance="g",verb="get",resource="x",code="200"}}': "0+4x50",
            f'{REQUESTS}{{instance="g",verb="get",resource="x",code="404"}}': "0+1x50",
        },
    ),
}
CASES = {"host": HOST, "guest": GUEST}


def alerts(side: str) -> list[dict[str, object]]:
    (group,) = yaml.safe_load((COMPONENTS / side / "rules.yaml").read_text())["groups"]
    return list(group["rules"])


@pytest.mark.parametrize("side", SIDES)
def test_rules_are_sound_and_each_is_tested(side: str) -> None:
    told = promtool("check", "rules", COMPONENTS / side / "rules.yaml")
    assert f"{len(CASES[side])} rules found" in told
    assert [rule["alert"] for rule in alerts(side)] == list(CASES[side])


@pytest.mark.parametrize("side", SIDES)
def test_alerts_fire_when_they_should_and_only_then(side: str, tmp_path: Path) -> None:
    tests = [
        {
            "name": f"{alert} {'fires' if fires else 'is quiet'}",
            "interval": "1m",
            "input_series": [{"series": s, "values": v} for s, v in (case.fires if fires else case.quiet).items()],
            "promql_expr_test": [
                {
                    "expr": f'count(ALERTS{{alertname="{alert}",alertstate="firing"}}) or vector(0)',
                    "eval_time": f"{case.minutes}m",
                    "exp_samples": [{"labels": "{}", "value": int(fires)}],
                }
            ],
        }
        for alert, case in CASES[side].items()
        for fires in (True, False)
    ]
    path = tmp_path / "tests.yaml"
    rules = str(COMPONENTS / side / "rules.yaml")
    path.write_text(yaml.safe_dump({"rule_files": [rules], "evaluation_interval": "1m", "tests": tests}))
    promtool("test", "rules", path)


def test_an_alert_reads_well(tmp_path: Path) -> None:
    """One of them whole, as it is sent."""
    series = [{"series": POOL, "values": "200x30"}, {"series": LEFT, "values": "10x30"}]
    (rule,) = (rule for rule in alerts("host") if rule["alert"] == "CloudProviderPoolNearlyFull")
    annotations = rule["annotations"]
    assert isinstance(annotations, dict)
    expected = {
        "exp_labels": {"severity": "warning", "pool": "p"},
        "exp_annotations": {**annotations, "summary": "Pool p has 5% of its addresses left."},
    }
    test = {"alertname": "CloudProviderPoolNearlyFull", "eval_time": "20m", "exp_alerts": [expected]}
    path = tmp_path / "tests.yaml"
    rules = str(COMPONENTS / "host" / "rules.yaml")
    tests = [{"interval": "1m", "input_series": series, "alert_rule_test": [test]}]
    path.write_text(yaml.safe_dump({"rule_files": [rules], "evaluation_interval": "1m", "tests": tests}))
    promtool("test", "rules", path)
