"""The compose stack, really up on stand-ins: what an operator relies on, tried.

Each test leaves the stack up and answering. What stand-ins cannot prove: docs/operations.md.
"""

import json

import pytest

from tests.deploy.images import APP
from tests.deploy.stack import FACT, QUESTION, Stack, ask, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]
SERVICES = ("etcd", "milvus", "app", "frontend")
UIDS = {"app": "10001", "frontend": "10001"}
# cgroup v2 or v1, as the container sees it
MEMORY = "cd /sys/fs/cgroup; cat memory.max 2>/dev/null || cat memory/memory.limit_in_bytes"
CPUS = (
    "cd /sys/fs/cgroup; cat cpu.max 2>/dev/null ||"
    " echo $(cat cpu/cpu.cfs_quota_us) $(cat cpu/cpu.cfs_period_us)"
)
LIMITS = {"app": (3, 2), "milvus": (4, 2), "etcd": (1, 1), "frontend": (0.25, 1)}


@pytest.fixture(scope="module")
def stack(docker, root, tmp_path_factory):
    stack = Stack(docker, root, tmp_path_factory.mktemp("stack"), "folio-live", {})
    try:
        stack.first_up()
        stack.document = stack.upload()
        yield stack
    finally:
        stack.destroy()


def test_containers_started_in_the_order_of_their_health(stack):
    states = [stack.state(service) for service in SERVICES]
    assert [state["Health"]["Status"] for state in states] == ["healthy"] * 4
    started = [state["StartedAt"] for state in states]
    assert started == sorted(started)


def test_an_answer_streams_through_nginx_with_its_source(stack):
    assert stack.document["status"] == "ready"
    with stack.web() as client:
        assert "<html" in client.get("/").text
        answer, events = ask(client, QUESTION)
    assert FACT in answer
    names = [name for _, name, _ in events]
    assert names[0] == "stage"
    assert names.index("sources") < names.index("token") < names.index("done")
    sources = next(data for _, name, data in events if name == "sources")["sources"]
    assert stack.document["id"] in {source["document_id"] for source in sources}
    # not held back to the end: the first event was here before the last was made
    assert events[0][0] < events[-1][0] - 0.005


@pytest.mark.parametrize("service", SERVICES)
def test_a_container_has_no_privileges_and_a_read_only_root(stack, service):
    status = stack.exec(service, "cat /proc/self/status").stdout
    lines = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    assert int(lines["CapEff"], 16) == int(lines["CapBnd"], 16) == 0
    assert lines["NoNewPrivs"].strip() == "1"
    for place in ("/etc", "/usr", "/"):
        written = stack.exec(service, f"touch {place}/written", is_checked=False)
        assert written.returncode != 0
        assert "Read-only file system" in written.stderr or "Permission denied" in written.stderr
    root = stack.exec(service, "awk '$2 == \"/\" { print $4 }' /proc/mounts").stdout
    assert "ro" in root.strip().split(",")


@pytest.mark.parametrize(("service", "uid"), UIDS.items())
def test_folios_own_containers_are_not_root(stack, service, uid):
    assert stack.exec(service, "id -u").stdout.strip() == uid
    first = stack.exec(service, "awk '/^Uid/ { print $2 }' /proc/1/status")
    assert first.stdout.strip() == uid


@pytest.mark.parametrize(("service", "limits"), LIMITS.items())
def test_limits_are_those_of_the_cgroup(stack, service, limits):
    gibibytes, cpus = limits
    assert int(stack.exec(service, MEMORY).stdout) == gibibytes * 1024**3
    quota, period = map(int, stack.exec(service, CPUS).stdout.split())
    assert quota / period == cpus


def test_the_password_is_made_kept_and_in_nobodys_environment(stack):
    password = stack.exec("app", "cat /run/folio/milvus_password").stdout.strip()
    assert len(password) == 48
    for service in SERVICES:
        assert password not in json.dumps(stack.docker.inspect(stack.container(service)))
    written = stack.exec("app", "echo x >/run/folio/milvus_password", is_checked=False)
    assert written.returncode != 0


def test_the_store_is_out_of_reach_of_the_web(stack):
    assert stack.exec("frontend", "getent hosts app").returncode == 0
    for service in ("milvus", "etcd"):
        found = stack.exec("frontend", f"getent hosts {service}", is_checked=False)
        assert found.returncode != 0


def test_a_restart_keeps_everything(stack):
    stack.compose("restart", "app")
    stack.wait_until_answering()


@pytest.mark.parametrize("service", SERVICES)
def test_a_killed_container_comes_back_and_answers_go_on(stack, service):
    stack.kill(service)
    stack.wait_until_answering()
    wait_until(lambda: stack.state(service)["Health"]["Status"] == "healthy")


def test_volumes_survive_down_and_an_upgrade(stack):
    """Down, and up with another image, as an upgrade is."""
    stack.down()
    stack.docker.run("tag", APP, "folio:next")
    stack.settings["FOLIO_IMAGE"] = "folio:next"
    stack.up()
    assert stack.docker.inspect(stack.container("app"))["Config"]["Image"] == "folio:next"
    stack.wait_until_answering()
    with stack.web() as client:
        path = f"/api/documents/{stack.document['id']}"
        assert client.get(path).json()["status"] == "ready"
