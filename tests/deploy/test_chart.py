"""The chart: as Helm renders it, as five Kubernetes take it, and as its parts fit together."""

import json
import re
from inspect import signature
from typing import get_args
from urllib.parse import urlsplit

import helm_python
import kubernetes_validate
import pytest
import yaml
from pydantic import SecretStr

from app.config import Settings
from app.generate import create_generate_routes
from app.main import create_routes
from app.scripts.initialize_data.__main__ import BAD_USAGE, SOME_FAILED, main
from tests.deploy.chart import (
    CASES,
    CHART,
    ROOT,
    component,
    helm,
    manifests,
    manifests_of_helm_4,
    named,
    of_kind,
    pod_of,
    selects,
    template,
    values_of,
    workloads,
)

KUBERNETES = ("1.29", "1.31", "1.33", "1.35", "1.37")
RENDERED = (*CASES, "together", "everything")
# Set by the chart itself, so that they are no values.
FIXED = {
    "FOLIO_ROLE",
    "FOLIO_HOST",
    "FOLIO_PORT",
    "FOLIO_DATA_DIR",
    "FOLIO_FRONTEND_DIR",
    "FOLIO_DATABASE_URL",
    "FOLIO_MILVUS_URI",
}
CLOSE_S = 30  # what the application's own shutdown may take


def settings():
    return {
        str(field.validation_alias or f"FOLIO_{name.upper()}"): field
        for name, field in Settings.model_fields.items()
    }


def secret_settings():
    return {
        name
        for name, field in settings().items()
        if SecretStr in (field.annotation, *get_args(field.annotation))
    }


def containers(case):
    """(workload, pod, container) of every container of a case."""
    return [
        (workload, pod_of(workload)["spec"], container)
        for workload in workloads(case)
        for container in pod_of(workload)["spec"]["containers"]
    ]


def folio_containers(case):
    return [found for found in containers(case) if found[2]["name"] == "folio"]


def port_number(container, port):
    names = {p["name"]: p["containerPort"] for p in container["ports"]}
    return names.get(port, port)


@pytest.mark.parametrize("case", CASES)
def test_lint_finds_nothing(case):
    (path,) = values_of(case)
    done = helm("lint", "--strict", CHART, "--values", path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "[WARNING]" not in done.stdout
    found = helm_python.lint(str(CHART), yaml.safe_load(path.read_text()), strict=True)
    assert found == {"total_charts_linted": 1, "messages": [], "errors": []}


@pytest.mark.parametrize("case", RENDERED)
def test_both_renderers_make_the_same(case):
    def known(documents):
        return {(d["kind"], d["metadata"]["name"]): d for d in documents if d["kind"] != "Secret"}

    assert known(manifests(case)) == known(manifests_of_helm_4(case))


@pytest.mark.parametrize("version", KUBERNETES)
@pytest.mark.parametrize("case", RENDERED)
def test_kubernetes_knows_every_field(case, version):
    checked = [d for d in manifests(case) if "monitoring.coreos.com" not in d["apiVersion"]]
    for document in checked:
        kubernetes_validate.validate(document, version, strict=True)
    assert len(checked) > 5


def test_each_case_is_what_its_name_says():
    kinds = {case: sorted({component(d) for d in workloads(case)} - {"load"}) for case in CASES}
    assert kinds == {
        "laptop": ["all"],
        "small": ["api", "etcd", "frontend", "generate", "ingest", "milvus", "postgres"],
        "large": ["api", "frontend", "ingest"],
    }


@pytest.mark.parametrize("case", RENDERED)
def test_everything_is_in_the_namespace_of_the_release_under_a_name_of_its_own(case):
    names = [(d["kind"], d["metadata"]["name"]) for d in manifests(case)]
    assert len(set(names)) == len(names)
    assert {d["metadata"]["namespace"] for d in manifests(case)} == {"rag"}
    assert all(len(name) <= 52 for _, name in names)


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


@pytest.mark.parametrize("case", RENDERED)
def test_probes_ask_for_routes_that_exist(case):
    paths = {
        "generate": set(create_generate_routes().openapi()["paths"]),
        "frontend": set(
            re.findall(r"location = (\S+)", (ROOT / "frontend/nginx.conf").read_text())
        ),
        "milvus": {"/healthz"},
        "etcd": {"/health"},
    }
    appliance = set(create_routes().openapi()["paths"])
    for workload, _, container in containers(case):
        if component(workload) == "load":
            continue
        probes = [container[f"{name}Probe"] for name in ("startup", "liveness", "readiness")]
        for probe in (probe["httpGet"] for probe in probes if "httpGet" in probe):
            assert probe["path"] in paths.get(component(workload), appliance)
            assert isinstance(port_number(container, probe["port"]), int)


def test_readiness_asks_whether_questions_can_be_answered():
    for _, _, container in folio_containers("small"):
        assert container["readinessProbe"]["httpGet"]["path"] == "/ready"
        assert container["livenessProbe"]["httpGet"]["path"] == "/health"
        startup = container["startupProbe"]
        assert startup["periodSeconds"] * startup["failureThreshold"] >= 120


@pytest.mark.parametrize("case", RENDERED)
def test_pods_fulfil_the_restricted_pod_security_standard(case):
    users = {"postgres": 999}
    for workload, pod, container in containers(case):
        security = pod["securityContext"]
        assert security["runAsNonRoot"] is True
        assert security["runAsUser"] == users.get(component(workload), 10001)
        assert security["fsGroup"] == security["runAsUser"]
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod)
        assert not any("hostPath" in volume for volume in pod["volumes"])


@pytest.mark.parametrize("case", RENDERED)
def test_pods_get_no_token_and_no_addresses_of_services_as_settings(case):
    accounts = {d["metadata"]["name"]: d for d in of_kind(case, "ServiceAccount")}
    for _, pod, _ in containers(case):
        assert pod["automountServiceAccountToken"] is False
        assert accounts[pod["serviceAccountName"]]["automountServiceAccountToken"] is False
        assert pod["enableServiceLinks"] is False


@pytest.mark.parametrize("case", RENDERED)
def test_every_container_has_limits_and_a_pinned_image(case):
    for _, _, container in containers(case):
        for bound in ("requests", "limits"):
            assert {"cpu", "memory"} <= set(container["resources"][bound])
        _, _, tag = container["image"].rpartition(":")
        assert tag not in ("", "latest")


def test_images_are_those_of_the_compose_file():
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    compose = {re.sub(r"^\$\{\w+:-|\}$", "", s["image"]) for s in services.values()}
    assert {c["image"] for _, _, c in containers("everything")} <= compose


def test_milvus_and_postgres_are_set_as_in_the_compose_file():
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    ours = {
        component(w): {e["name"]: e.get("value") for e in c.get("env", [])}
        for w, _, c in containers("small")
    }
    milvus = {**services["milvus"]["environment"], "ETCD_ENDPOINTS": "folio-etcd:2379"}
    assert milvus.items() <= ours["milvus"].items()
    assert "COMMON_SECURITY_DEFAULTROOTPASSWORD" in ours["milvus"]
    for name in ("POSTGRES_USER", "POSTGRES_DB"):
        assert ours["postgres"][name] == services["postgres"]["environment"][name]


@pytest.mark.parametrize("case", RENDERED)
def test_volumes_that_are_mounted_exist(case):
    claims = {d["metadata"]["name"] for d in of_kind(case, "PersistentVolumeClaim")}
    outside = {"handbooks"}
    for workload, pod, container in containers(case):
        templates = workload["spec"].get("volumeClaimTemplates", [])
        volumes = {v["name"] for v in pod["volumes"]} | {t["metadata"]["name"] for t in templates}
        assert {mount["name"] for mount in container["volumeMounts"]} == volumes
        bound = {
            v["persistentVolumeClaim"]["claimName"]
            for v in pod["volumes"]
            if "persistentVolumeClaim" in v
        }
        assert bound <= claims | outside


@pytest.mark.parametrize("case", RENDERED)
def test_what_several_pods_write_is_a_claim_that_several_nodes_may_mount(case):
    claim = named(case, "PersistentVolumeClaim", "folio-data")
    wanted = "ReadWriteOnce" if case in ("laptop", "together") else "ReadWriteMany"
    assert claim["spec"]["accessModes"] == [wanted]
    assert claim["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"


@pytest.mark.parametrize("case", RENDERED)
def test_every_variable_of_the_application_is_a_setting(case):
    configured = set(named(case, "ConfigMap", "folio-config")["data"])
    given = {
        variable["name"]
        for workload, _, container in containers(case)
        if component(workload) != "frontend"
        for variable in container.get("env", [])
        if variable["name"].startswith(("FOLIO_", "LLM_"))
    }
    assert configured | given <= set(settings())


@pytest.mark.parametrize("case", RENDERED)
def test_the_application_takes_the_settings_as_the_chart_writes_them(case, monkeypatch):
    given = named(case, "ConfigMap", "folio-config")["data"]
    for name, value in given.items():
        assert isinstance(value, str)
        monkeypatch.setenv(name, value)
    Settings(_env_file=None)
    if case == "everything":
        assert given["FOLIO_ENGINE_MAX_NUM_BATCHED_TOKENS"] == "1000000"


def test_values_take_every_setting_but_secrets_and_those_of_the_chart():
    schema = json.loads((CHART / "values.schema.json").read_text())
    names = schema["properties"]["config"]["propertyNames"]["enum"]
    assert set(names) == set(settings()) - secret_settings() - FIXED


@pytest.mark.parametrize("case", RENDERED)
def test_no_secret_is_in_a_config_map_or_written_into_a_pod(case):
    for config in of_kind(case, "ConfigMap"):
        assert not secret_settings() & set(config["data"])
    for _, _, container in containers(case):
        for variable in container.get("env", []):
            if variable["name"] in secret_settings() | {"PGPASSWORD", "POSTGRES_PASSWORD"}:
                value = variable.get("value", "$(MILVUS_PASSWORD)")
                assert value.endswith("$(MILVUS_PASSWORD)")
                assert "value" in variable or "secretKeyRef" in variable["valueFrom"]


@pytest.mark.parametrize("case", RENDERED)
def test_secrets_that_pods_need_have_their_keys(case):
    made = {d["metadata"]["name"]: set(d["data"] or {}) for d in of_kind(case, "Secret")}
    for _, _, container in containers(case):
        for variable in container.get("env", []):
            reference = variable.get("valueFrom", {}).get("secretKeyRef", {"optional": True})
            if not reference.get("optional") and case != "large":
                assert reference["key"] in made[reference["name"]]
    assert bool(made) == (case != "large")


def test_the_roles_reach_what_they_need():
    environment = {
        component(w): {e["name"]: e.get("value") for e in c["env"]}
        for w, _, c in folio_containers("small")
    }
    services = {d["metadata"]["name"] for d in of_kind("small", "Service")}
    assert {name: env["FOLIO_ROLE"] for name, env in environment.items()} == {
        "api": "api",
        "ingest": "ingest",
        "generate": "generate",
    }
    for role in ("api", "ingest"):
        for name in ("FOLIO_DATABASE_URL", "FOLIO_MILVUS_URI", "LLM_BASE_URL"):
            assert urlsplit(environment[role][name]).hostname in services
    assert set(environment["generate"]) == {"FOLIO_ROLE", "FOLIO_NUM_THREADS"}


def test_threads_are_as_many_as_the_limit_has_cores_unless_set():
    for _, _, container in folio_containers("small"):
        (threads,) = [e for e in container["env"] if e["name"] == "FOLIO_NUM_THREADS"]
        assert threads["valueFrom"] == {"resourceFieldRef": {"resource": "limits.cpu"}}
    for _, _, container in folio_containers("together"):
        assert "FOLIO_NUM_THREADS" not in {e["name"] for e in container["env"]}


def test_the_frontend_asks_for_the_full_name_of_the_api():
    (frontend,) = [c for _, _, c in containers("small") if c["name"] == "frontend"]
    value = {e["name"]: e["value"] for e in frontend["env"]}["FOLIO_BACKEND"]
    assert value == "http://folio-api.rag.svc.cluster.local:8000"


def test_browsers_may_use_the_name_of_the_ingress():
    config = named("large", "ConfigMap", "folio-config")["data"]
    (ingress,) = of_kind("large", "Ingress")
    assert config["FOLIO_ALLOWED_HOSTS"] == ingress["spec"]["rules"][0]["host"]


def test_the_api_starts_with_three_and_goes_from_two_to_ten_at_70_percent():
    (scaler,) = of_kind("small", "HorizontalPodAutoscaler")
    spec = scaler["spec"]
    assert (spec["minReplicas"], spec["maxReplicas"]) == (2, 10)
    target = {"type": "Utilization", "averageUtilization": 70}
    assert spec["metrics"] == [{"type": "Resource", "resource": {"name": "cpu", "target": target}}]
    api = named("small", "Deployment", spec["scaleTargetRef"]["name"])
    assert api["spec"]["replicas"] == 3


@pytest.mark.parametrize("case", ["small", "large"])
def test_updates_and_evictions_leave_replicas_running(case):
    rolling = [d for d in of_kind(case, "Deployment") if component(d) != "generate"]
    for deployment in rolling:
        assert deployment["spec"]["strategy"]["rollingUpdate"] == {
            "maxUnavailable": "25%",
            "maxSurge": "25%",
        }
    budgets = {
        component(d): d["spec"]["maxUnavailable"] for d in of_kind(case, "PodDisruptionBudget")
    }
    assert budgets == {component(d): 1 for d in of_kind(case, "Deployment")}


def test_a_process_that_owns_its_files_is_never_doubled():
    (workload,) = workloads("laptop")
    assert workload["spec"]["strategy"] == {"type": "Recreate"}
    assert workload["spec"]["replicas"] == 1
    assert not of_kind("laptop", "HorizontalPodAutoscaler", "PodDisruptionBudget")


@pytest.mark.parametrize("case", RENDERED)
def test_pods_get_the_time_that_their_shutdown_takes(case):
    drains = {
        "generate": 90 if case == "everything" else settings()["FOLIO_DRAIN_TIMEOUT_S"].default
    }
    for workload, pod, container in folio_containers(case):
        hook = container.get("lifecycle", {}).get("preStop", {}).get("exec", {})
        wait = int(hook.get("command", ["sleep", "0"])[1])
        needed = wait + drains.get(component(workload), CLOSE_S)
        assert pod["terminationGracePeriodSeconds"] >= needed + 5


def test_answers_being_written_get_half_a_minute_before_the_stop():
    api = named("small", "Deployment", "folio-api")
    (container,) = pod_of(api)["spec"]["containers"]
    assert container["lifecycle"]["preStop"]["exec"]["command"] == ["sleep", "30"]


@pytest.mark.parametrize(("case", "rule"), [("small", "preferred"), ("large", "required")])
def test_replicas_are_spread_over_nodes_and_zones(case, rule):
    for deployment in of_kind(case, "Deployment"):
        pod = pod_of(deployment)
        (term,) = pod["spec"]["affinity"]["podAntiAffinity"][
            f"{rule}DuringSchedulingIgnoredDuringExecution"
        ]
        term = term.get("podAffinityTerm", term)
        assert term["topologyKey"] == "kubernetes.io/hostname"
        assert selects(term["labelSelector"]["matchLabels"], pod["metadata"]["labels"])
        # else an update would have no node for the first new replica
        assert rule == "preferred" or term["matchLabelKeys"] == ["pod-template-hash"]
        (spread,) = pod["spec"]["topologySpreadConstraints"]
        assert spread["topologyKey"] == "topology.kubernetes.io/zone"


def test_the_engine_asks_for_a_gpu_and_tolerates_its_taint():
    deployment = named("everything", "Deployment", "folio-generate")
    pod = pod_of(deployment)["spec"]
    (container,) = pod["containers"]
    assert container["resources"]["requests"]["nvidia.com/gpu"] == 1
    assert container["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert {t["key"] for t in pod["tolerations"]} == {"nvidia.com/gpu", "folio"}
    assert pod["nodeSelector"] == {"gpu": "h100", "pool": "folio"}
    assert deployment["spec"]["strategy"]["rollingUpdate"]["maxSurge"] == 0


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


@pytest.mark.parametrize("kind", ["Job", "CronJob"])
def test_jobs_call_the_script_with_options_it_has(kind):
    (workload,) = of_kind("everything", kind)
    (container,) = pod_of(workload)["spec"]["containers"]
    options = {a.partition("=")[0][2:] for a in container["args"] if a.startswith("--")}
    assert options <= set(signature(main).parameters)
    assert container["command"] == ["python", "-m", "app.scripts.initialize_data"]
    assert "--url=http://folio-api:8000" in container["args"]
    spec = workload["spec"] if kind == "Job" else workload["spec"]["jobTemplate"]["spec"]
    (rule,) = [r for r in spec["podFailurePolicy"]["rules"] if r["action"] == "FailJob"]
    assert rule["onExitCodes"]["values"] == [SOME_FAILED, BAD_USAGE]
    assert rule["onExitCodes"]["containerName"] == container["name"]


def test_rules_and_dashboards_are_those_of_the_compose_profile():
    (rule,) = of_kind("everything", "PrometheusRule")
    assert rule["spec"] == yaml.safe_load((ROOT / "deploy/prometheus/folio.rules.yaml").read_text())
    dashboards = named("everything", "ConfigMap", "folio-dashboards")
    files = (ROOT / "deploy/grafana/dashboards").glob("*.json")
    assert {name: json.loads(text) for name, text in dashboards["data"].items()} == {
        path.name: json.loads(path.read_text()) for path in files
    }
    assert dashboards["metadata"]["labels"]["grafana_dashboard"] == "1"


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


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ("mode=both", "mode must be one of the following"),
        ("config.FOLIO_RETREIVAL_TOP_K=3", "FOLIO_RETREIVAL_TOP_K"),
        ("config.FOLIO_API_KEY=abc", "FOLIO_API_KEY"),
        ("api.replica=3", "Additional property replica is not allowed"),
        ("api.autoscaling.targetCPU=700", "Must be less than or equal to 100"),
        ("postgres.external.url=postgresql://folio:secret@db/folio", "postgres.external.url"),
        ("persistence.size=20", "persistence.size"),
        ("image.tag=latest", "image.tag"),
        ("mode=split", "set milvus.enabled or milvus.external.uri"),
        ("mode=split,milvus.enabled=true", "set postgres.enabled or postgres.external.url"),
        ("milvus.enabled=true,milvus.external.uri=http://m:1", "choose one"),
        ("generate.enabled=true", "set config.LLM_MODEL"),
        ("generate.enabled=true,config.LLM_BASE_URL=http://x/v1", "remove config.LLM_BASE_URL"),
        ("ingress.enabled=true", "set ingress.hosts"),
        ("sync.enabled=true", "set sync.urls or sync.documents"),
        ("api.autoscaling.minReplicas=20,mode=all", "minReplicas 20 is above maxReplicas 10"),
    ],
)
def test_values_that_cannot_be_are_refused_with_the_reason(values, message):
    done = template("--set", values)
    assert done.returncode != 0
    assert message in done.stderr
