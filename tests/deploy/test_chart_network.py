"""The chart: who finds whom, and who may reach whom."""

import pytest
import yaml

from tests.deploy.chart import (
    RENDERED,
    component,
    containers,
    manifests,
    named,
    of_kind,
    pod_of,
    port_number,
    selects,
    values_of,
    workloads,
)


def test_two_releases_share_no_name_and_no_label():
    ours, others = manifests("small"), manifests("small", release="second")
    names = [{(d["kind"], d["metadata"]["name"]) for d in docs} for docs in (ours, others)]
    assert not names[0] & names[1]
    for service in [d for d in others if d["kind"] == "Service"]:
        for workload in workloads("small"):
            labels = pod_of(workload)["metadata"]["labels"]
            assert not selects(service["spec"]["selector"], labels)


@pytest.mark.parametrize("case", RENDERED)
def test_selectors_find_the_pods_they_mean_and_no_others(case):
    pods = {component(w): pod_of(w)["metadata"]["labels"] for w in workloads(case)}
    selectors = [
        (component(d), d["spec"]["selector"]["matchLabels"])
        for d in of_kind(case, "Deployment", "StatefulSet", "PodDisruptionBudget")
    ]
    selectors += [(component(d), d["spec"]["selector"]) for d in of_kind(case, "Service")]
    selectors += [
        (component(d), d["spec"]["podSelector"]["matchLabels"])
        for d in of_kind(case, "NetworkPolicy")
    ]
    for name, selector in selectors:
        assert {other for other in pods if selects(selector, pods[other])} == {name}


@pytest.mark.parametrize("case", RENDERED)
def test_services_lead_to_ports_that_exist(case):
    ports = {component(w): c for w, _, c in containers(case)}
    for service in of_kind(case, "Service"):
        container = ports[component(service)]
        names = {port["name"] for port in container["ports"]}
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= names
        for port in service["spec"]["ports"]:
            assert port["port"] == port_number(container, port["targetPort"])


@pytest.mark.parametrize("case", RENDERED)
def test_stateful_services_are_headless_and_belong_to_their_set(case):
    for stateful in of_kind(case, "StatefulSet"):
        service = named(case, "Service", stateful["spec"]["serviceName"])
        assert service["spec"]["clusterIP"] == "None"
        assert component(service) == component(stateful)
        assert stateful["spec"]["volumeClaimTemplates"]


def test_the_frontend_asks_for_the_full_name_of_the_api():
    (frontend,) = [c for _, _, c in containers("small") if c["name"] == "frontend"]
    value = {e["name"]: e["value"] for e in frontend["env"]}["FOLIO_BACKEND"]
    assert value == "http://folio-api.rag.svc.cluster.local:8000"


def test_browsers_may_use_the_name_of_the_ingress():
    config = named("large", "ConfigMap", "folio-config")["data"]
    (ingress,) = of_kind("large", "Ingress")
    assert config["FOLIO_ALLOWED_HOSTS"] == ingress["spec"]["rules"][0]["host"]


def may_connect(case, source, target, port):
    """Whether the policies let pods of one component reach a port of another."""

    def allows(rules, side, other):
        labels = {"app.kubernetes.io/component": other}
        return any(
            port in [p["port"] for p in rule["ports"]]
            and any(
                labels.items() <= peer.get("podSelector", {}).get("matchLabels", {}).items()
                for peer in rule.get(side, [])
            )
            for rule in rules
        )

    policies = {component(d): d["spec"] for d in of_kind(case, "NetworkPolicy")}
    out = allows(policies[source]["egress"], "to", target)
    return out and allows(policies[target]["ingress"], "from", source)


def test_policies_allow_what_is_needed_and_nothing_else_between_the_parts():
    ports = {"api": 8000, "ingest": 8000, "generate": 8000, "frontend": 3000, "milvus": 19530}
    ports |= {"etcd": 2379, "postgres": 5432, "load": 8000}
    allowed = {
        (source, target)
        for source in ports
        for target, port in ports.items()
        if may_connect("everything", source, target, port)
    }
    assert allowed == {
        ("frontend", "api"),
        ("load", "api"),
        ("api", "generate"),
        ("api", "milvus"),
        ("api", "postgres"),
        ("ingest", "milvus"),
        ("ingest", "postgres"),
        ("milvus", "etcd"),
    }


@pytest.mark.parametrize("case", ["small", "large", "everything"])
def test_every_pod_has_a_policy_for_both_directions_and_may_ask_for_names(case):
    policies = {component(d): d["spec"] for d in of_kind(case, "NetworkPolicy")}
    assert set(policies) == {component(d) for d in workloads(case)}
    for policy in policies.values():
        assert policy["policyTypes"] == ["Ingress", "Egress"]
        assert {"protocol": "UDP", "port": 53} in policy["egress"][0]["ports"]


def test_policies_open_the_ports_of_servers_outside():
    policy = named("large", "NetworkPolicy", "folio-api")["spec"]
    (rule,) = [r for r in policy["egress"][1:] if "to" not in r]
    assert {p["port"] for p in rule["ports"]} == {19530, 5432, 8000}


def test_policies_open_the_web_but_not_the_address_of_credentials():
    for name in ("api", "ingest", "load"):
        policy = named("large", "NetworkPolicy", f"folio-{name}")["spec"]
        (rule,) = [r for r in policy["egress"] if {"ipBlock"} == set(r.get("to", [{}])[0])]
        assert {p["port"] for p in rule["ports"]} == {80, 443}
        assert rule["to"][0]["ipBlock"]["except"] == ["169.254.0.0/16"]
    assert "ipBlock" not in str(named("large", "NetworkPolicy", "folio-frontend"))


def test_only_the_ingress_controller_and_prometheus_come_in_from_outside():
    large = values_of("large")[0].read_text()
    wanted = yaml.safe_load(large)["networkPolicy"]
    frontend = named("large", "NetworkPolicy", "folio-frontend")["spec"]["ingress"]
    assert [rule["from"] for rule in frontend] == [wanted["clients"]]
    ingest = named("large", "NetworkPolicy", "folio-ingest")["spec"]["ingress"]
    assert [rule["from"] for rule in ingest] == [wanted["monitoring"]]


def test_prometheus_finds_every_part_under_the_job_that_the_alerts_ask_for():
    monitors = {d["metadata"]["name"]: d["spec"] for d in of_kind("everything", "ServiceMonitor")}
    found = {}
    for service in of_kind("everything", "Service"):
        for monitor in monitors.values():
            (wanted,) = monitor["selector"]["matchExpressions"]
            (endpoint,) = monitor["endpoints"]
            if component(service) in wanted["values"]:
                assert endpoint["port"] in {p["name"] for p in service["spec"]["ports"]}
                found[component(service)] = endpoint["relabelings"][0]["replacement"]
    assert found == {
        "api": "folio",
        "ingest": "folio",
        "generate": "folio",
        "milvus": "milvus",
        "etcd": "etcd",
    }
    assert (
        monitors["folio-folio"]["endpoints"][0]["authorization"]["credentials"]["key"] == "api-key"
    )
