"""The chart: as Helm renders it, and as five versions of Kubernetes take it."""

import json
import re
from inspect import signature

import helm_python
import kubernetes_validate
import pytest
import yaml

from app.scripts.initialize_data.__main__ import BAD_USAGE, SOME_FAILED, main
from tests.deploy.chart import (
    CASES,
    CHART,
    RENDERED,
    ROOT,
    component,
    files_of_helm_4,
    helm,
    manifests,
    manifests_of_helm_4,
    named,
    of_kind,
    pod_of,
    template,
    values_of,
    workloads,
)

KUBERNETES = ("1.29", "1.31", "1.33", "1.35", "1.37")


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
def test_the_notes_name_objects_that_exist(case):
    notes = files_of_helm_4(case)["folio/templates/NOTES.txt"]
    named_there = set(re.findall(r"\b(deployment|service)/([\w-]+)", notes))
    assert (
        "deployment",
        f"folio-{'all' if case in ('laptop', 'together') else 'api'}",
    ) in named_there
    assert named_there <= {(d["kind"].lower(), d["metadata"]["name"]) for d in manifests(case)}
    assert ("users add" in notes) == ("FOLIO_AUTH" in str(of_kind(case, "ConfigMap")))


@pytest.mark.parametrize("case", RENDERED)
def test_everything_is_in_the_namespace_of_the_release_under_a_name_of_its_own(case):
    names = [(d["kind"], d["metadata"]["name"]) for d in manifests(case)]
    assert len(set(names)) == len(names)
    assert {d["metadata"]["namespace"] for d in manifests(case)} == {"rag"}
    assert all(len(name) <= 52 for _, name in names)


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
