"""Builds the stand-ins for the public images, and Folio's images on them."""

import shutil
import subprocess
import sys
from pathlib import Path

STANDINS = Path(__file__).with_name("standins")
DEBIAN = "folio-tests/bookworm"
CA_BUNDLE = Path("/etc/ssl/certs/ca-certificates.crt")
# target of standins/Dockerfile -> the names that the Dockerfiles and docker-compose.yml ask for
NAMES = {
    "python": "python:3.11-slim-bookworm",
    "nginx": "nginx:1.28-bookworm",
    "etcd": "quay.io/coreos/etcd:v3.5.25",
    "milvus": "milvusdb/milvus:v2.6.18",
    "postgres": "postgres:17.6-bookworm",
    "prometheus": "prom/prometheus:v3.5.0",
}
APP, FRONTEND = "folio:0.1.0", "folio-frontend:0.1.0"
BUILD_TIMEOUT_S = 900


def build_standins(docker, cache, folder):
    """Cold about a minute; warm from the engine's layers at once."""
    if not docker.has_image(DEBIAN):
        archive = folder / "bookworm.tar"
        run("mmdebstrap", "--variant=minbase", "--include=ca-certificates", "bookworm", archive)
        docker.run("import", archive, DEBIAN)
        archive.unlink()
    context = cache / "standins"
    shutil.copytree(STANDINS, context, dirs_exist_ok=True)
    (context / CA_BUNDLE.name).write_bytes(CA_BUNDLE.read_bytes())
    put_cpu_torch(context / "wheels")
    for target, name in NAMES.items():
        build(docker, context, name, "--target", target)


def build_folio(docker, root):
    build(docker, root, APP)
    build(docker, root / "frontend", FRONTEND)


def build(docker, context, name, *options):
    docker.run("build", "--tag", name, *options, context, timeout=BUILD_TIMEOUT_S)


def put_cpu_torch(folder):
    """The CPU build of PyTorch, where pip finds it under that name; else the folder stays empty."""
    requirements = (Path(__file__).parents[2] / "requirements.txt").read_text().split()
    (pin,) = [line for line in requirements if line.startswith("torch==")]
    folder.mkdir(exist_ok=True)
    version = pin.removeprefix("torch==")
    if [path for path in folder.iterdir() if path.name.startswith(f"torch-{version}+cpu")]:
        return
    for path in folder.iterdir():
        path.unlink()
    download = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    subprocess.run(
        [*download, "--dest", folder, f"{pin}+cpu"], capture_output=True, timeout=BUILD_TIMEOUT_S
    )


def run(*command):
    done = subprocess.run(
        [str(word) for word in command], capture_output=True, text=True, timeout=BUILD_TIMEOUT_S
    )
    assert done.returncode == 0, done.stderr[-3000:]
