"""The command on real SQL, Milvus Lite and parsers; only the embedder is the small fake."""

import json
import os
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from typer import Typer
from typer.testing import CliRunner

from app import log
from app.config import Settings
from app.domain import DocumentStatus
from app.errors import NotFound, Unavailable
from app.main import create_app
from app.scripts.initialize_data import __main__ as command
from app.scripts.initialize_data import sync
from app.scripts.initialize_data.files import FoundFile, changed_files, find_files
from app.scripts.initialize_data.libraries import Known, State
from app.scripts.initialize_data.report import Report
from app.scripts.initialize_data.sync import Ingest
from app.wiring import indexes, loading
from app.wiring.appliance import build_services
from tests.api.conftest import serving
from tests.fakes import FakeEmbedder

cli = Typer()
cli.command()(command.main)


@pytest.fixture(autouse=True)
def quick(monkeypatch, tmp_path):
    monkeypatch.setattr(indexes, "load_embedder", lambda name, num_threads: FakeEmbedder())
    monkeypatch.setattr(log, "configure", lambda level, format: None)
    monkeypatch.setattr(sync, "POLL_S", 0.02)
    monkeypatch.chdir(tmp_path)  # no .env of the developer


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "handbook"
    (folder / "sub").mkdir(parents=True)
    (folder / "a.md").write_text("# Holidays\n\nFifteen days of leave.")
    (folder / "sub" / "b.txt").write_text("Train journeys are in second class.")
    return folder


@pytest.fixture
def run(tmp_path):
    def run(*arguments):
        options = ["--data-dir", str(tmp_path / "data")]
        result = CliRunner().invoke(cli, [*map(str, arguments), *options])
        assert result.exception is None or isinstance(result.exception, SystemExit), result.output
        return result.exit_code, " ".join(result.output.replace("│", " ").split())

    return run


def documents_of(tmp_path):
    """Document ids by path."""
    services = build_services(Settings(_env_file=None, data_dir=tmp_path / "data"))
    try:
        return {d.path: d.id for d in services.records.documents.list()[0]}
    finally:
        services.close(5)


@contextmanager
def running_appliance(tmp_path, monkeypatch):
    settings = Settings(_env_file=None, data_dir=tmp_path / "data", manual_dir=None)
    services = build_services(settings)

    def load(services):
        loading.load_ingestion(settings, services)
        services.report("ready", "")

    services.load = load
    with serving(create_app(settings, services)) as url:
        monkeypatch.setenv("FOLIO_PORT", str(urlsplit(url).port))
        yield services, url


def test_folder_is_added_once(run, folder):
    code, output = run(folder)
    assert (code, "added 2" in output) == (0, True)
    code, output = run(folder)
    assert (code, "unchanged 2" in output, "added" in output) == (0, True, False)


def test_changed_file_is_indexed_again(run, folder):
    run(folder)
    (folder / "a.md").write_text("# Holidays\n\nTwenty days of leave.")
    code, output = run(folder)
    assert (code, "changed 1" in output, "unchanged 1" in output) == (0, True, True)


def test_file_that_fails_is_named_with_the_reason_and_the_others_are_added(run, folder):
    (folder / "broken.pdf").write_bytes(b"%PDF-1.7 nothing else")
    code, output = run(folder)
    assert (code, "added 2" in output, "failed 1" in output) == (1, True, True)
    assert f"failed: {folder}/broken.pdf" in output
    assert "“broken.pdf”" in output


def test_unread_formats_are_skipped_in_folders_and_failures_when_named(run, folder):
    (folder / "tool.exe").write_bytes(b"MZ\x00\x01")
    code, output = run(folder)
    assert (code, "skipped 1 of formats that are not read: .exe 1" in output) == (0, True)
    code, output = run(folder / "tool.exe")
    assert (code, "“tool.exe” cannot be read" in output) == (1, True)


def test_prune_deletes_only_what_is_gone_from_the_named_folder(run, folder, tmp_path):
    other = tmp_path / "other.md"
    other.write_text("kept")
    run(folder, other)
    (folder / "a.md").unlink()
    other.unlink()
    assert "deleted" not in run(folder)[1]
    code, output = run(folder, "--delete")
    assert (code, "deleted 1" in output) == (0, True)


def test_prune_leaves_a_folder_without_files_alone(run, folder):
    run(folder)
    for file in (folder / "a.md", folder / "sub" / "b.txt"):
        file.unlink()
    code, output = run(folder, "--delete")
    assert (code, "nothing was deleted" in output, "deleted 2" in output) == (0, True, False)
    assert "no files were found" in output


def test_documents_follow_files_that_were_moved(run, folder, tmp_path):
    run(folder)
    before = documents_of(tmp_path)
    (folder / "a.md").rename(folder / "sub" / "leave.md")
    code, output = run(folder, "--delete")
    assert (code, "moved 1" in output, "unchanged 1" in output) == (0, True, True)
    assert ("added" in output, "deleted" in output) == (False, False)
    after = documents_of(tmp_path)
    assert after[f"{folder}/sub/leave.md"] == before[f"{folder}/a.md"]
    assert set(after) == {f"{folder}/sub/leave.md", f"{folder}/sub/b.txt"}


def test_a_file_that_goes_while_others_are_followed_is_a_failure_of_its_own(folder):
    class Library(ScriptedLibrary):
        def known(self, source):
            return {f"{folder}/old.md": Known("d", "h", 1)}

    report = Report()
    gone = FoundFile(folder / "gone.md", False)
    sync.follow_moved(Library(), [folder], [gone], report)
    assert report.places["moved"] == []


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user: needs root")
def test_a_folder_that_may_not_be_entered_is_named_and_nothing_of_it_is_deleted(folder):
    (folder / "sub").chmod(0o700)
    known = {f"{folder}/sub/b.txt": Known("d", "h", 1)}
    unread = []
    for parent in [folder, *list(folder.parents)[:3]]:
        parent.chmod(0o755)
    os.seteuid(65_534)
    try:
        found = [file.path.name for file in find_files([folder], unread.append)]
        gone = sync.gone_documents(known, [folder])
    finally:
        os.seteuid(0)
    assert (found, gone) == (["a.md"], {})
    assert [str(folder / "sub") in text for text in unread] == [True]


def test_a_copy_is_another_document_and_two_moved_twins_stay_two(run, folder, tmp_path):
    (folder / "copy.md").write_bytes((folder / "a.md").read_bytes())
    assert "added 3" in run(folder)[1]
    before = documents_of(tmp_path)
    for name in ("a.md", "copy.md"):
        (folder / name).rename(folder / "sub" / name)
    assert "moved 2" in run(folder)[1]
    after = documents_of(tmp_path)
    assert sorted(after.values()) == sorted(before.values())


def test_a_moved_and_edited_file_is_a_new_document(run, folder):
    run(folder)
    (folder / "a.md").unlink()
    (folder / "new.md").write_text("# Holidays\n\nTwenty days off.")
    code, output = run(folder, "--delete")
    assert (code, "added 1" in output, "deleted 1" in output) == (0, True, True)


def test_a_dry_run_tells_what_would_be_done_and_does_nothing(run, folder, tmp_path):
    run(folder)
    before = documents_of(tmp_path)
    (folder / "a.md").write_text("# Holidays\n\nTwenty days of leave.")
    (folder / "sub" / "b.txt").rename(folder / "moved.txt")
    (folder / "new.md").write_text("# Canteen")
    (folder / "tool.exe").write_bytes(b"MZ\x00\x01")
    code, output = run(folder, "--delete", "--dry-run")
    assert (code, f"changed {folder}/a.md" in output) == (0, True)
    assert f"added {folder}/new.md" in output
    assert f"moved {folder}/moved.txt" in output
    assert "skipped 1 of formats that are not read" in output
    assert documents_of(tmp_path) == before


def test_a_dry_run_asks_a_running_appliance_and_makes_no_collection(
    run, folder, tmp_path, monkeypatch
):
    with running_appliance(tmp_path, monkeypatch) as (services, url):
        run(folder, "--url", url)
        (folder / "a.md").unlink()
        assert f"deleted {folder}/a.md" in run(folder, "--dry-run", "--delete")[1]
        code, output = run(folder, "--dry-run", "--collection", "new")
        assert (code, f"added {folder}/sub/b.txt" in output) == (0, True)
        names = {collection.name for collection in services.records.collections.list()}
    assert "new" not in names


def test_the_summary_is_written_for_programs(run, folder, tmp_path):
    (folder / "broken.pdf").write_bytes(b"%PDF-1.7 nothing else")
    summary = tmp_path / "summary.json"
    assert run(folder, "--json", summary)[0] == 1
    written = json.loads(summary.read_text())
    assert written["counts"]["added"] == 2
    assert written["counts"]["failed"] == 1
    assert f"{folder}/broken.pdf" in written["failed"]
    assert sorted(written["added"]) == [f"{folder}/a.md", f"{folder}/sub/b.txt"]


def test_arguments_that_do_not_go_together_are_refused(run, folder):
    assert run()[0] == 2
    assert run(folder, "--watch", "--dry-run")[0] == 2
    assert run("--watch", "--urls", "http://example.com/")[0] == 2


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_watching_follows_changes_until_it_is_stopped(folder, tmp_path):
    with watching(folder, tmp_path / "data") as (process, lines):
        assert "added" in lines.until("Watching")
        (folder / "c.md").write_text("# Canteen\n\nSoup on Mondays.")
        assert "added" in lines.until("└")
        (folder / "c.md").rename(folder / "d.md")
        assert "moved" in lines.until("└")
        (folder / "d.md").unlink()
        assert "deleted" in lines.until("└")
        process.send_signal(signal.SIGTERM)
        lines.until("Stopped")
        assert process.wait(60) == 0


@contextmanager
def watching(folder, data_dir):
    """The real command in a process of its own, and the lines that it prints."""
    with subprocess.Popen(
        [sys.executable, "-m", "app.scripts.initialize_data", folder, "--watch", "--delete"],
        env={**os.environ, "FOLIO_DATA_DIR": str(data_dir)},
        cwd=Path(command.__file__).parents[3],
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process, Lines(process.stdout)
        finally:
            process.kill()


class Lines:
    """Reads a process's output up to a word; the test's own time limit ends the wait."""

    def __init__(self, stream):
        self._stream = stream

    def until(self, word):
        read = ""
        for line in self._stream:
            read += line
            if word in line:
                return read
        raise AssertionError(f"no {word!r} in {read}")


def test_what_changed_is_found_without_the_hidden(folder):
    (folder / ".git").mkdir()
    (folder / ".git" / "x.md").write_text("hidden")
    changed = [folder / ".git" / "x.md", folder / "sub", folder / "gone.md", folder.parent]
    assert changed_files([folder], changed) == [FoundFile(folder / "sub" / "b.txt", False)]


def test_running_appliance_gets_the_files_sent(run, folder, tmp_path, monkeypatch):
    with running_appliance(tmp_path, monkeypatch) as (services, url):
        code, output = run(folder, "--collection", "Handbook")
        assert (code, "added 2" in output) == (0, True)
        assert f"Sending the files to http://localhost:{urlsplit(url).port}" in output
        (collection,) = [c for c in services.records.collections.list() if c.name == "Handbook"]
        documents, _ = services.records.documents.list(collection.id)
        assert {d.path for d in documents} == {f"{folder}/a.md", f"{folder}/sub/b.txt"}
        assert {d.status for d in documents} == {DocumentStatus.READY}


def test_sent_files_are_the_documents_that_were_ingested_without_the_appliance(
    run, folder, tmp_path, monkeypatch
):
    run(folder)
    with running_appliance(tmp_path, monkeypatch):
        assert "unchanged 2" in run(folder)[1]
        (folder / "a.md").write_text("new")
        (folder / "sub" / "b.txt").rename(folder / "c.txt")
        assert "moved 1" in run(folder)[1]
        (folder / "c.txt").unlink()
        (folder / "broken.pdf").write_bytes(b"%PDF-1.7 nothing else")
        code, output = run(folder, "--delete")
    assert code == 1
    for part in ("changed 1", "deleted 1", "failed 1", "“broken.pdf”"):
        assert part in output
    (folder / "broken.pdf").unlink()
    assert "unchanged 1" in run(folder)[1]


def test_pruning_a_running_appliance_keeps_files_of_any_name(run, folder, tmp_path, monkeypatch):
    names = ["u\u0308ber.md", "back\\slash.md", " spaces .md", "n" * 240 + ".md", 'quo"te.md']
    for name in names:
        (folder / name).write_text(f"in {name}")
    with running_appliance(tmp_path, monkeypatch) as (services, _):
        code, output = run(folder, "--delete")
        assert (code, "added 7" in output, "deleted" in output) == (0, True, False)
        (folder / "a.md").unlink()
        code, output = run(folder, "--delete")
        assert (code, "unchanged 6" in output, "deleted 1" in output) == (0, True, True)
        documents, _ = services.records.documents.list()
    assert {d.path for d in documents} == {*(f"{folder}/{n}" for n in names), f"{folder}/sub/b.txt"}
    assert "unchanged 6" in run(folder)[1]


def test_name_that_is_not_text_is_refused_by_the_appliance_too(run, folder, tmp_path, monkeypatch):
    (folder / "bad\udcff.md").write_text("x")
    with running_appliance(tmp_path, monkeypatch):
        code, output = run(folder)
    assert (code, "added 2" in output, "rename the file" in output) == (1, True, True)


def test_nobody_at_the_address_says_the_way_out(run, folder):
    code, output = run(folder, "--url", "http://127.0.0.1:9")
    assert (code, "no Folio answers at http://127.0.0.1:9" in output) == (3, True)


def test_path_that_is_not_there_ends_before_anything_is_added(run, folder, tmp_path):
    code, output = run(folder, "missing")
    assert (code, "there is no missing" in output) == (2, True)
    assert not (tmp_path / "data").exists()


def test_wrong_settings_are_named(run, folder, monkeypatch):
    monkeypatch.setenv("FOLIO_PORT", "none")
    code, output = run(folder)
    assert (code, "FOLIO_PORT" in output) == (2, True)


def test_hidden_files_and_linked_folders_are_left_out_and_each_file_comes_once(folder):
    (folder / ".git").mkdir()
    (folder / ".git" / "config.md").write_text("hidden")
    (folder / ".env").write_text("hidden")
    (folder / "loop").symlink_to(folder)
    found = list(find_files([folder, folder / "a.md", folder / "sub"]))
    assert found == [
        FoundFile(folder / "a.md", False),
        FoundFile(folder / "sub" / "b.txt", False),
    ]


class ScriptedLibrary:
    """States of documents in the order in which they are asked for."""

    def __init__(self, *states):
        self.states = list(states)

    def add(self, file):
        return "added", State("d", DocumentStatus.QUEUED, "queued", 0, None)

    def state(self, document_id):
        state = self.states.pop(0) if len(self.states) > 1 else self.states[0]
        if isinstance(state, Exception):
            raise state
        return state


def test_document_deleted_meanwhile_is_a_failure():
    report = Report()
    Ingest(ScriptedLibrary(NotFound("gone")), report, command.console).run(
        [FoundFile(Path("a.md"), True)], 1
    )
    assert report.failed == {"a.md": "somebody deleted the document meanwhile"}


def test_library_that_never_moves_is_given_up(monkeypatch):
    monkeypatch.setattr(sync, "STALL_TIMEOUT_S", 0.1)
    library = ScriptedLibrary(State("d", DocumentStatus.QUEUED, "queued", 0, None))
    with pytest.raises(Unavailable, match="1 documents are still queued"):
        Ingest(library, Report(), command.console).run([FoundFile(Path("a.md"), True)], 1)
