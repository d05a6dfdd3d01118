"""The chart: how its pods run, are asked, spread and replaced."""

import re

import pytest
import yaml

from app.generate import create_generate_routes
from app.main import create_routes
from tests.deploy.chart import (
    RENDERED,
    ROOT,
    component,
    containers,
    folio_containers,
    named,
    of_kind,
    pod_of,
    port_number,
    selects,
    workloads,
)


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
