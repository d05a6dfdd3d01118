import os
from pathlib import Path

import pytest

from tests.deploy.docker_engine import DockerEngine, why_docker_cannot_run
from tests.deploy.images import build_folio, build_standins


@pytest.fixture(scope="session")
def root():
    return Path(__file__).parents[2]


@pytest.fixture(scope="session")
def docker(root, tmp_path_factory):
    """An engine with the stand-ins and Folio's images, built."""
    if reason := why_docker_cannot_run():
        pytest.skip(reason)
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "folio-tests"
    folder = tmp_path_factory.mktemp("docker")
    engine = DockerEngine(cache, folder)
    engine.start()
    try:
        build_standins(engine, cache, folder)
        build_folio(engine, root)
        yield engine
    finally:
        engine.stop()
