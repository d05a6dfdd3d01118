"""The planner against numbers that were worked out by hand."""

import json
import math
import random
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from typer import Typer
from typer.testing import CliRunner

from app.db.session import Database
from app.errors import InvalidInput
from app.scripts.plan_capacity import __main__ as command
from app.scripts.plan_capacity import measure
from app.scripts.plan_capacity.costs import MEASURED, Costs
from app.scripts.plan_capacity.plan import (
    Load,
    Machines,
    api_replicas_for,
    generator_s,
    generators_for,
    plan,
    vector_bytes,
)
from app.scripts.plan_capacity.simulation import percentile, poisson, simulate, waits
from app.wiring import indexes
from tests.fakes import FakeEmbedder

ROOT = Path(__file__).parent.parent.parent
COSTS = Costs(
    chunks_per_document=4,
    ingest_core_s_per_chunk=0.09,
    question_core_s=0.05,
    sql_bytes_per_chunk=2500,
    terms_per_chunk=50,
    file_bytes_per_document=10_000,
)
LOAD = Load(
    documents=100_000,
    users=600,
    questions_per_hour=12,
    prompt_tokens=1000,
    answer_tokens=200,
    answer_spread=0.5,
    wait_s=1.0,
)
MACHINES = Machines(
    api_cores=2,
    ingest_cores=10,
    dimension=100,
    prefill_tokens_per_s=10_000,
    decode_tokens_per_s=1000,
    seats=16,
    kv_bytes_per_token=10_000,
)
cli = Typer()
cli.command()(command.main)


def run(*arguments):
    return CliRunner().invoke(cli, list(arguments))


def test_waits_of_one_server_add_up():
    assert waits([0, 1, 2], [5, 5, 5], 1) == [0, 4, 8]


def test_the_first_free_server_takes_the_next():
    # The second server is free at 3, the first at 5.
    assert waits([0, 1, 2, 4], [5, 2, 1, 1], 2) == [0, 0, 1, 0]


def test_simulated_waits_are_those_of_the_formula():
    # M/M/1 at 80 %: half wait longer than ln(0.8 / 0.5) / (1 - 0.8) = 2.35 mean services.
    rng = random.Random(1)
    arrivals = list(poisson(rng, 0.8, 200_000))
    services = [rng.expovariate(1.0) for _ in arrivals]
    waited = sorted(waits(arrivals, services, 1))
    assert percentile(waited, 0.5) == pytest.approx(math.log(0.8 / 0.5) / 0.2, rel=0.06)
    assert percentile(waited, 0.95) == pytest.approx(math.log(0.8 / 0.05) / 0.2, rel=0.06)


def test_a_simulation_can_be_repeated():
    assert simulate(1.0, 0.9, 0.5, 1) == simulate(1.0, 0.9, 0.5, 1)


def test_more_servers_wait_less():
    assert simulate(3.0, 1.0, 0.5, 5).p95_s < simulate(3.0, 1.0, 0.5, 4).p95_s


@pytest.mark.parametrize(("share", "value"), [(0.5, 2), (0.95, 4), (0.25, 1)])
def test_percentiles_are_values_that_occurred(share, value):
    assert percentile([1, 2, 3, 4], share) == value


def test_a_chunk_takes_its_vector_its_links_its_terms_and_its_ids():
    # 100 floats, 32 + 16/15 links of 4 bytes, 50 terms of 8, three ids of 36
    assert vector_bytes(100, 50) == pytest.approx(400 + 4 * (32 + 16 / 15) + 400 + 108)


def test_storage_and_ingestion_are_products():
    found = plan(LOAD, MACHINES, COSTS)
    assert found.questions_per_s == 2.0
    assert found.chunks == 400_000
    assert found.ingest_hours == pytest.approx(1.0)  # 36 000 s of one core, ten cores
    assert found.sql_gb == pytest.approx(1.0)
    assert found.files_gb == pytest.approx(1.0)
    assert found.milvus_memory_gb == pytest.approx(400_000 * 1040.267 / 1e9, rel=1e-5)
    assert found.milvus_disk_gb == 2 * found.milvus_memory_gb
    assert found.kv_cache_gb == pytest.approx(16 * 1200 * 10_000 / 1e9)


def test_api_replicas_keep_their_cores_at_seventy_per_cent():
    assert api_replicas_for(100.0, 2, 0.05) == 4  # 5 cores / 1.4 = 3.6
    assert api_replicas_for(1.0, 2, 0.05) == 2  # one may fail


def test_an_answer_occupies_a_generator_for_its_prompt_and_its_words():
    assert generator_s(LOAD, MACHINES) == pytest.approx(0.1 + 0.2)


def test_generators_are_the_fewest_that_keep_the_wait():
    # 2 a second, 0.3 s each: one generator is 60 % busy and enough.
    found = plan(LOAD, MACHINES, COSTS)
    assert (found.generators, found.generator_busy) == (1, pytest.approx(0.6))
    assert found.answer_s == pytest.approx(16 * 0.3)
    assert found.generator_wait.p95_s <= LOAD.wait_s


def test_a_load_above_one_generator_takes_another():
    number, waiting = generators_for(replace(LOAD, users=1200), MACHINES)  # 1.2 generators' work
    assert number == 2
    assert waiting.p95_s <= LOAD.wait_s


def test_a_shorter_wait_may_take_another():
    busy = replace(LOAD, users=950)  # 95 % of one
    assert generators_for(replace(busy, wait_s=60.0), MACHINES)[0] == 1
    assert generators_for(replace(busy, wait_s=0.1), MACHINES)[0] == 2


def test_what_no_number_of_generators_can_do_is_said():
    slow = replace(MACHINES, decode_tokens_per_s=0.1)
    with pytest.raises(InvalidInput, match="need more than 1000 generators"):
        generators_for(LOAD, slow)


def test_the_command_prints_the_plan_as_json():
    found = json.loads(run("--documents", "1000", "--users", "36", "--json").stdout)
    assert found["questions_per_s"] == pytest.approx(0.12)
    assert found["chunks"] == round(1000 * MEASURED.chunks_per_document)


def test_the_command_shows_a_table_and_its_options():
    assert "first ingestion" in run("--documents", "1000", "--users", "36").stdout
    assert "--decode-tokens-per-s" in run("--help").stdout


def test_costs_of_another_machine_are_taken(tmp_path):
    file = tmp_path / "costs.json"
    file.write_text(json.dumps(asdict(COSTS)))
    found = json.loads(run("--documents", "10", "--costs", str(file), "--json").stdout)
    assert found["chunks"] == 40


@pytest.mark.parametrize(
    "text", ["{}", "nothing", json.dumps(asdict(COSTS) | {"terms_per_chunk": 0})]
)
def test_a_file_without_costs_is_refused(tmp_path, text):
    file = tmp_path / "costs.json"
    file.write_text(text)
    result = run("--costs", str(file))
    assert result.exit_code == 2
    assert "costs.json" in result.output


def test_costs_are_measured_on_a_library_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setattr(indexes, "load_embedder", lambda name, num_threads: FakeEmbedder())
    monkeypatch.chdir(tmp_path)  # no .env of the developer
    folder = tmp_path / "files"
    folder.mkdir()
    for n in range(3):
        (folder / f"{n}.txt").write_text(f"Employees of part {n} have fifteen days of leave.")
    app = Typer()
    app.command()(measure.main)
    costs = Costs(**json.loads(CliRunner().invoke(app, [str(folder), "--questions", "3"]).stdout))
    assert (costs.chunks_per_document, costs.file_bytes_per_document) == (1.0, 47)
    assert costs.ingest_core_s_per_chunk > 0
    assert costs.question_core_s > 0
    assert costs.terms_per_chunk == 6


def test_a_database_grows_by_what_it_holds(tmp_path):
    database = Database(f"sqlite:///{tmp_path / 'folio.db'}")
    database.migrate()
    assert database.num_bytes() > 4096
    database.close()


def test_the_figures_of_the_documentation_are_the_defaults():
    text = (ROOT / "docs" / "performance.md").read_text()
    for value in asdict(MEASURED).values():
        assert str(value) in text
