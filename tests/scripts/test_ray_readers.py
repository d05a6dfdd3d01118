"""Documents read on Ray: the readers with a fake of Ray, and one run on the real one."""

import importlib.util
import logging
import subprocess
import sys
import types
from datetime import UTC, datetime
from pathlib import Path

import pytest
from sqlalchemy import text
from typer import Typer
from typer.testing import CliRunner

from app.config import Settings
from app.domain import Document, DocumentStatus, JobStage
from app.errors import LeaseLost, ParseFailed, Unavailable
from app.scripts.initialize_data import __main__ as command
from app.scripts.initialize_data import ray_readers
from app.scripts.initialize_data.ray_readers import RAY, RayReaders
from app.wiring.appliance import build_services

ROOT = Path(__file__).parent.parent.parent
cli = Typer()
cli.command()(command.main)


class RayError(Exception):
    pass


class FakeRay:
    """Ray with two CPUs whose actors do nothing: a call's outcome is the next of `outcomes`."""

    exceptions = types.SimpleNamespace(RayError=RayError)

    def __init__(self, *outcomes, is_ready=True):
        self.outcomes = list(outcomes)
        self.is_ready = is_ready
        self.calls = []

    def init(self, **options):
        self.options = options

    def cluster_resources(self):
        return {"CPU": 2.0}

    def remote(self, kind):
        actor = types.SimpleNamespace(read=types.SimpleNamespace(remote=self._call))
        return types.SimpleNamespace(
            options=lambda **_: types.SimpleNamespace(remote=lambda *_: actor)
        )

    def _call(self, document, content):
        self.calls.append((document.id, content))
        return object()

    def wait(self, references, timeout):
        return (references, []) if self.is_ready else ([], references)

    def get(self, reference):
        outcome = self.outcomes.pop(0)
        if isinstance(outcome, RayError):
            raise outcome
        return outcome


def make_readers(ray):
    readers = RayReaders(ray, None)
    readers.start(None, None)
    return readers


@pytest.fixture(autouse=True)
def logging_of_before():
    """The command line sets up logging for its process, which is the tests' here."""
    root = logging.getLogger()
    level, handlers = root.level, list(root.handlers)
    yield
    root.setLevel(level)
    root.handlers[:] = handlers


@pytest.fixture
def file(tmp_path):
    file = tmp_path / "a.txt"
    file.write_bytes(b"fifteen days")
    return file


def make_document():
    now = datetime.now(UTC)
    return Document(
        *("doc-1", "default", "folder", "/a.txt", "a.txt", "text/plain", "ab", 12),
        *(DocumentStatus.READY, JobStage.PARSING, 0.0, None, "", None, 0, now, now),
    )


def ignore(stage, progress):
    pass


def lose(stage, progress):
    raise LeaseLost("taken")


def test_there_is_a_reader_for_each_cpu_and_it_gets_the_bytes(file):
    ray = FakeRay("read")
    readers = make_readers(ray)
    assert readers.num_readers == 2
    assert readers.read(make_document(), file, ignore) == "read"
    assert ray.calls == [("doc-1", b"fifteen days")]


def test_what_a_file_lacks_is_raised_here(file):
    readers = make_readers(FakeRay(ParseFailed("no text")))
    with pytest.raises(ParseFailed, match="no text"):
        readers.read(make_document(), file, ignore)


def test_a_lost_reader_is_tried_again_and_its_place_is_not_lost(file):
    readers = make_readers(FakeRay(RayError(), RayError(), "read"))
    for _ in range(2):
        with pytest.raises(Unavailable, match="lost: RayError"):
            readers.read(make_document(), file, ignore)
    assert readers.read(make_document(), file, ignore) == "read"


def test_a_job_that_was_taken_away_waits_for_no_reader(file):
    ray = FakeRay(is_ready=False)
    readers = make_readers(ray)
    with pytest.raises(LeaseLost):
        readers.read(make_document(), file, lose)
    assert not ray.calls


def test_a_reader_that_gives_nothing_back_is_given_up(file, monkeypatch):
    monkeypatch.setattr(ray_readers, "READ_TIMEOUT_S", 0.0)
    with pytest.raises(Unavailable, match="gave nothing back"):
        make_readers(FakeRay(is_ready=False)).read(make_document(), file, ignore)


def test_without_ray_the_way_out_is_said(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    arguments = [str(tmp_path), "--engine", "ray", "--data-dir", str(tmp_path / "data")]
    result = CliRunner().invoke(cli, arguments)
    assert result.exit_code == 2
    assert f"pip install {RAY}" in " ".join(result.output.split())


@pytest.mark.parametrize(
    "options", [["--ray-address", "ray:6379"], ["--engine", "ray", "--url", "http://a"]]
)
def test_options_that_nothing_would_use_are_refused(tmp_path, options):
    result = CliRunner().invoke(cli, [str(tmp_path), *options])
    assert result.exit_code == 2


def test_the_version_that_is_named_is_the_one_that_is_tested():
    assert RAY in (ROOT / "requirements-dev.txt").read_text().splitlines()


@pytest.mark.slow
def test_documents_read_on_ray_are_written_once(tmp_path):
    assert importlib.util.find_spec("ray"), "requirements-dev.txt brings Ray"
    folder, data = tmp_path / "handbook", tmp_path / "data"
    folder.mkdir()
    for n in range(6):
        (folder / f"{n}.md").write_text(f"# Part {n}\n\nEmployees of part {n} have {n + 9} days.")
    (folder / "broken.pdf").write_bytes(b"%PDF-1.7 nothing else")
    run = [sys.executable, "-m", "app.scripts.initialize_data", str(folder), "--engine", "ray"]
    done = subprocess.run(
        [*run, "--data-dir", str(data)], cwd=ROOT, capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 1, done.stdout + done.stderr
    assert "“broken.pdf” is damaged" in done.stdout

    services = build_services(Settings(_env_file=None, data_dir=data))
    try:
        documents = {Path(d.path).name: d for d in services.records.documents.list()[0]}
        ready = {name for name, d in documents.items() if d.status is DocumentStatus.READY}
        assert ready == {f"{n}.md" for n in range(6)}
        [chunk] = services.records.chunks.list(documents["3.md"].id)[0]
        assert "Employees of part 3 have 12 days." in chunk.span.text
        with services.records.database.snapshot() as session:
            assert session.scalar(text("SELECT count(*) FROM chunks")) == 6
            assert session.scalar(text("SELECT max(attempts) FROM jobs")) == 1
            assert session.scalar(text("SELECT count(*) FROM stale_vectors")) == 0
    finally:
        services.close(5)
