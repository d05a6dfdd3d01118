"""The compose file, as Compose itself understands it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from app.config import Settings

COMPOSE = Path(sys.executable).with_name("docker-compose")
SERVICES = {"app", "frontend", "milvus", "etcd"}
PUBLISHED = {"app": "8000", "frontend": "3000"}
BYTES_PER_GIB = 1024**3


def settings_variables():
    return {
        field.validation_alias or f"FOLIO_{name.upper()}"
        for name, field in Settings.model_fields.items()
    }


def compose_config(root, folder, env_text=""):
    """The file rendered by Compose with these lines in .env and nothing of ours in the shell."""
    env_file = folder / "env"
    env_file.write_text(env_text)
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("FOLIO_", "LLM_", "MILVUS_", "ETCD_"))
    }
    command = [COMPOSE, "--file", root / "docker-compose.yml", "--env-file", env_file]
    done = subprocess.run(
        [*command, "config", "--format", "json"],
        capture_output=True,
        text=True,
        timeout=60,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    assert "level=warning" not in done.stderr, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def config(root, tmp_path_factory):
    return compose_config(root, tmp_path_factory.mktemp("compose"))


@pytest.fixture(scope="module")
def services(config):
    return config["services"]


def test_the_stack_is_the_four_containers(services):
    assert set(services) == SERVICES


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_every_container_is_hardened_and_limited(services, name):
    service = services[name]
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["read_only"] is True
    assert service["restart"] == "unless-stopped"
    assert not {"privileged", "ulimits", "cap_add", "network_mode", "pid"} & set(service)
    limits = service["deploy"]["resources"]["limits"]
    assert float(limits["cpus"]) <= 2
    assert BYTES_PER_GIB / 4 <= int(limits["memory"]) <= 8 * BYTES_PER_GIB


def test_only_the_web_and_the_api_are_published_and_on_loopback(services):
    published = {
        name: (port["host_ip"], port["published"], str(port["target"]))
        for name, service in services.items()
        for port in service.get("ports", [])
    }
    assert published == {name: ("127.0.0.1", port, port) for name, port in PUBLISHED.items()}


def test_containers_start_in_the_order_of_their_health(services):
    waits = {
        name: {other: how["condition"] for other, how in service.get("depends_on", {}).items()}
        for name, service in services.items()
    }
    assert waits == {
        "etcd": {},
        "milvus": {"etcd": "service_healthy"},
        "app": {"milvus": "service_healthy", "postgres": "service_healthy"},
        "frontend": {"app": "service_healthy"},
    }


def test_what_others_wait_for_has_a_health_check(root, services):
    assert services["etcd"]["healthcheck"]["test"]
    assert services["milvus"]["healthcheck"]["test"]
    assert "HEALTHCHECK" in (root / "Dockerfile").read_text()
    assert "HEALTHCHECK" in (root / "frontend" / "Dockerfile").read_text()


def test_milvus_and_etcd_cannot_be_reached_from_outside(config, services):
    assert config["networks"]["store"]["internal"] is True
    for name in ("milvus", "etcd"):
        assert list(services[name]["networks"]) == ["store"]
    assert "store" not in services["frontend"]["networks"]


def test_everything_that_must_survive_is_in_a_named_volume(config, services):
    mounts = {
        (name, volume["target"]): volume
        for name, service in services.items()
        for volume in service.get("volumes", [])
    }
    assert set(mounts) == {
        ("app", "/data"),
        ("app", "/run/folio"),
        ("milvus", "/var/lib/milvus"),
        ("milvus", "/run/folio"),
        ("etcd", "/etcd"),
    }
    assert {volume["type"] for volume in mounts.values()} == {"volume"}
    assert {volume["source"] for volume in mounts.values()} == set(config["volumes"])
    assert mounts["app", "/run/folio"]["read_only"] is True


def test_every_image_is_pinned(services):
    for service in services.values():
        name, _, tag = service["image"].rpartition(":")
        assert name
        assert tag not in ("", "latest")


def test_the_milvus_password_is_made_at_the_first_start(services, root):
    script = services["milvus"]["command"][-1].replace("$$", "$")
    assert "/dev/urandom" in script
    assert services["milvus"]["environment"]["COMMON_SECURITY_AUTHORIZATIONENABLED"] == "true"
    assert "COMMON_SECURITY_DEFAULTROOTPASSWORD" not in services["milvus"]["environment"]
    assert "FOLIO_MILVUS_TOKEN" not in services["app"]["environment"]
    text = (root / "docker-compose.yml").read_text().lower()
    assert "password:" not in text
    assert "api_key: " not in text


def run_first_start(script, folder):
    """Milvus's start script with `milvus` replaced by a program that shows its password."""
    fake = folder / "milvus"
    fake.write_text('#!/bin/sh\necho "$COMMON_SECURITY_DEFAULTROOTPASSWORD $*"\n')
    fake.chmod(0o755)
    script = script.replace("$$", "$").replace("/run/folio", str(folder))
    done = subprocess.run(
        ["sh", "-ec", script],
        capture_output=True,
        text=True,
        timeout=10,
        env={"PATH": f"{folder}:{os.environ['PATH']}"},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split(maxsplit=1)


def test_the_start_script_makes_one_strong_password_and_keeps_it(services, tmp_path):
    script = services["milvus"]["command"][-1]
    first, command = run_first_start(script, tmp_path)
    again, _ = run_first_start(script, tmp_path)
    assert command.strip() == "run standalone"
    assert len(first) == 48
    assert again == first
    assert (tmp_path / "milvus_password").read_text() == first


def test_every_setting_reaches_the_appliance(root):
    compose = yaml.safe_load((root / "docker-compose.yml").read_text())
    passed = set(compose["services"]["app"]["environment"])
    # the password arrives by file, the rest by name
    assert passed == settings_variables() - {"FOLIO_MILVUS_TOKEN"}


def test_a_line_in_the_env_file_reaches_the_appliance(root, tmp_path):
    lines = "LLM_BASE_URL=http://host:1/v1\nFOLIO_RETRIEVAL_TOP_K=9\nFOLIO_WEB_PORT=3333\n"
    services = compose_config(root, tmp_path, lines)["services"]
    environment = services["app"]["environment"]
    assert environment["LLM_BASE_URL"] == "http://host:1/v1"
    assert environment["FOLIO_RETRIEVAL_TOP_K"] == "9"
    assert services["frontend"]["ports"][0]["published"] == "3333"


def test_what_is_not_set_is_left_to_the_defaults_of_the_settings(services):
    given = {k: v for k, v in services["app"]["environment"].items() if v is not None}
    assert set(given) == {
        "FOLIO_HOST",
        "FOLIO_PORT",
        "FOLIO_DATA_DIR",
        "FOLIO_FRONTEND_DIR",
        "FOLIO_MANUAL_DIR",
        "FOLIO_MILVUS_URI",
        "FOLIO_LOG_FORMAT",
    }


def test_the_example_file_leaves_the_stack_as_it_is(root, tmp_path, config):
    example = (root / ".env.example").read_text()
    assert compose_config(root, tmp_path, example)["services"].keys() == config["services"].keys()


def test_the_stack_for_swarm_has_nothing_that_swarm_refuses(root, config):
    done = subprocess.run(
        [sys.executable, root / "deploy" / "swarm.py"],
        input=json.dumps(config),
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    stack = json.loads(done.stdout)
    assert set(stack) == {"version", "services", "networks", "volumes"}
    assert set(stack["services"]) == SERVICES
    for service in stack["services"].values():
        assert not {"build", "depends_on", "profiles", "restart"} & set(service)
        assert service["cap_drop"] == ["ALL"]
        assert service["deploy"]["resources"]["limits"]["memory"]
    assert stack["networks"]["store"]["internal"] is True


def test_profiles_add_their_containers_hardened_and_limited(root, tmp_path):
    profiles = "COMPOSE_PROFILES=postgres,gpu,monitoring\n"
    services = compose_config(root, tmp_path, profiles)["services"]
    assert set(services) - SERVICES == {"postgres", "generate", "prometheus", "grafana"}
    for service in services.values():
        assert service["cap_drop"] == ["ALL"]
        assert service["read_only"] is True
        assert service["deploy"]["resources"]["limits"]["memory"]
    (device,) = services["generate"]["deploy"]["resources"]["reservations"]["devices"]
    assert device["capabilities"] == ["gpu"]
    assert services["generate"]["build"]["args"]["ACCELERATOR"] == "cuda"
