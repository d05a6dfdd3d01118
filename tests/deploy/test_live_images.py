"""Folio's images, really built (on stand-ins for their base images) and looked at from inside."""

import json

import pytest

from tests.deploy.images import APP, FRONTEND, NAMES
from tests.deploy.stack import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]
# of Folio's own layers, unpacked, without the base image
MOST_BYTES = {APP: 2_150_000_000, FRONTEND: 20_000_000}
STATUS = """
import urllib.request
print(urllib.request.urlopen("http://127.0.0.1:8000/api/status", timeout=5).read().decode())
"""
ASK = """
import json, urllib.request
body = {"model": "folio", "messages": [{"role": "user", "content": "What is Folio?"}]}
request = urllib.request.Request(
    "http://127.0.0.1:8000/v1/chat/completions",
    json.dumps(body).encode(), {"Content-Type": "application/json"})
print(urllib.request.urlopen(request, timeout=60).read().decode())
"""


def in_image(docker, image, script):
    command = ("run", "--rm", "--network", "none", "--entrypoint", "sh", image, "-c", script)
    return docker.run(*command)


def has_started(docker, name, question):
    state = docker.inspect(name)["State"]
    assert state["Running"], docker.call("logs", "--tail", "5", name).stderr
    return docker.call(*question, is_checked=False).returncode == 0


@pytest.mark.parametrize(("image", "base"), [(APP, NAMES["python"]), (FRONTEND, NAMES["nginx"])])
def test_an_image_stays_within_its_size(docker, image, base):
    num_bytes = docker.inspect(image)["Size"] - docker.inspect(base)["Size"]
    assert num_bytes <= MOST_BYTES[image], f"{image} adds {num_bytes / 1e6:.0f} MB to its base"


@pytest.mark.parametrize("image", [APP, FRONTEND])
def test_an_image_runs_as_uid_10001(docker, image):
    assert in_image(docker, image, "id -u") == "10001"
    assert docker.inspect(image)["Config"]["Healthcheck"]["Test"]


def test_no_build_tool_is_in_the_appliance(docker):
    tools = "gcc g++ cc make node npm"
    assert in_image(docker, APP, f"for tool in {tools}; do command -v $tool; done; true") == ""
    assert in_image(docker, APP, "ls /folio/venv/bin | grep -E '^(pip.*|uvx?)$' || true") == ""


def test_the_cpu_image_has_no_cuda(docker):
    packages = in_image(docker, APP, "ls /folio/venv/lib/python3*/site-packages").split()
    assert "torch" in packages
    assert not [name for name in packages if name.startswith(("nvidia", "cuda", "triton"))]
    code = "import torch; print(torch.version.cuda, torch.__version__)"
    assert in_image(docker, APP, f"python -c '{code}'").startswith("None ")


def test_the_kernels_for_every_cpu_are_in_the_image(docker):
    listed = in_image(docker, APP, "ls /folio/app/engine/kernels/cpu/compiled").split()
    assert {name.split("-")[1] for name in listed} == {"avx512", "avx2", "baseline"}


def test_building_again_gives_the_same_image(docker, root):
    before = docker.inspect(APP)["RootFS"]["Layers"]
    docker.run("build", "--tag", APP, root, timeout=600)
    assert docker.inspect(APP)["RootFS"]["Layers"] == before


def test_the_appliance_starts_and_answers_without_any_network(docker):
    """Milvus Lite, the embedding model and the extractive answerer are inside."""
    name = "folio-air-gapped"
    hardening = ("--read-only", "--cap-drop", "ALL", "--security-opt", "no-new-privileges")
    place = ("--network", "none", "--tmpfs", "/tmp", "--volume", f"{name}:/data")
    docker.run("run", "--detach", "--name", name, *hardening, *place, APP)
    try:
        code = "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/ready', timeout=5)"
        ready = ("exec", name, "python", "-c", code)
        wait_until(lambda: has_started(docker, name, ready))
        status = ("exec", name, "python", "-c", STATUS)
        wait_until(lambda: json.loads(docker.run(*status))["num_pending"] == 0)
        answer = json.loads(docker.run("exec", name, "python", "-c", ASK))
        assert "Folio" in answer["choices"][0]["message"]["content"]
        wait_until(lambda: docker.inspect(name)["State"]["Health"]["Status"] == "healthy")
        assert list(docker.inspect(name)["NetworkSettings"]["Networks"]) == ["none"]
    finally:
        docker.run("rm", "--force", "--volumes", name)
        docker.run("volume", "rm", "--force", name)
