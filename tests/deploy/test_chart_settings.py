"""The chart: what it tells the application, held against the application's settings."""

import json
from typing import get_args
from urllib.parse import urlsplit

import pytest
import yaml
from pydantic import SecretStr

from app.config import Settings
from tests.deploy.chart import (
    CHART,
    RENDERED,
    ROOT,
    component,
    containers,
    folio_containers,
    named,
    of_kind,
)

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
