import pytest

from tests.e2e.appliance import start_appliance


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("appliance") / "data"


@pytest.fixture(scope="module")
def appliance(data_dir):
    started = start_appliance(data_dir)
    yield started
    if started.process.poll() is None:
        started.stop()
