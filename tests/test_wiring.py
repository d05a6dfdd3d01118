"""The choice of the generator at the start; the rest of the wiring is walked by the journey."""

import asyncio

import pytest

from app.config import Settings
from app.db.grants import GrantRepository
from app.domain import Grant, Question
from app.errors import Conflict, GeneratorUnavailable, InvalidInput, Unavailable
from app.rag.llm.discovery import ModelChoice
from app.wiring import loading
from app.wiring.appliance import build_services
from tests.api.conftest import FakeProcessor
from tests.fakes import FakeEmbedder, FakeGenerator, FakeRetriever


@pytest.fixture
def settings(tmp_path):
    return Settings(_env_file=None, data_dir=tmp_path, manual_dir=None, llm_model="org/model")


@pytest.fixture
def services(settings):
    services = build_services(settings)
    services.embedder, services.retriever = FakeEmbedder(), FakeRetriever([])
    yield services
    services.close(1)


@pytest.mark.parametrize(
    ("choice", "is_needed"),
    [
        (ModelChoice("extractive"), False),
        (ModelChoice("auto", base_url="http://llm/v1"), False),
        (ModelChoice("/nowhere/model"), False),
        (ModelChoice("no-such-organisation/no-such-model"), True),
    ],
)
def test_hub_is_needed_only_for_a_hub_name_that_is_not_in_the_cache(choice, is_needed):
    assert loading.needs_hub(choice) is is_needed


def test_fetched_model_takes_over_from_the_quotes(settings, services, monkeypatch):
    fetched, notes = FakeGenerator(), []

    def resolve(choice, *, on_progress, **options):
        on_progress("downloading org/model: 45 % of 988 MB")
        notes.append((services.generator.info.kind, services.generator.info.note))
        return fetched

    monkeypatch.setattr(loading, "resolve_generator", resolve)
    loading.speak(settings, services, loading.quoting(services, "looking"))
    before = services.pipeline
    loading.fetch_generator(settings, services, ModelChoice("org/model"))
    assert notes[0][0] == "extractive"
    assert "45 % of 988 MB" in notes[0][1]
    assert services.generator is fetched
    assert services.pipeline is not before


@pytest.mark.parametrize("error", [GeneratorUnavailable("disk full"), RuntimeError("disk full")])
def test_quotes_go_on_where_fetching_fails_and_say_why(settings, services, monkeypatch, error):
    def resolve(choice, **options):
        raise error

    monkeypatch.setattr(loading, "resolve_generator", resolve)
    loading.speak(settings, services, loading.quoting(services, "looking"))
    loading.fetch_generator(settings, services, ModelChoice("org/model"))
    assert "disk full" in services.generator.info.note

    async def speaker():
        return [event async for event in services.pipeline.answer(Question("hello"))][-1].answer

    assert asyncio.run(speaker()).generator == services.generator.info


def test_second_process_on_a_data_folder_is_refused(settings, services):
    with pytest.raises(Conflict, match="works on"):
        build_services(settings)


def test_second_process_with_another_database_is_refused_and_does_no_harm(
    settings, services, tmp_path
):
    upload = services.upload_dir / "half"
    upload.write_bytes(b"an upload in flight")
    other = settings.model_copy(update={"database_url": f"sqlite:///{tmp_path}/other/folio.db"})
    with pytest.raises(Conflict, match=rf"works on {settings.data_dir} already: stop it"):
        build_services(other)
    assert upload.exists()
    assert not (tmp_path / "other").exists()


def test_data_folder_of_another_database_is_refused_until_its_id_is_deleted(settings, tmp_path):
    build_services(settings).close(1)
    other = settings.model_copy(update={"database_url": f"sqlite:///{tmp_path}/other/folio.db"})
    with pytest.raises(InvalidInput, match="belongs to another database") as refusal:
        build_services(other)
    assert "FOLIO_DATABASE_URL" in str(refusal.value)
    build_services(settings).close(1)
    (settings.data_dir / "installation-id").unlink()
    build_services(other).close(1)


def test_refused_start_lets_go_of_the_folder(settings):
    wrong = settings.model_copy(
        update={"database_url": "postgresql://nobody@/nothing?host=/nowhere"}
    )
    with pytest.raises(Unavailable):
        build_services(wrong)
    build_services(settings).close(1)


def test_leftovers_of_broken_uploads_are_gone_after_a_start(settings):
    leftover = settings.data_dir / "uploads" / "tmp-abc" / "0"
    leftover.parent.mkdir(parents=True)
    leftover.write_bytes(b"half a file")
    services = build_services(settings)
    assert list(services.upload_dir.iterdir()) == []
    services.close(1)


def test_reranker_is_loaded_where_one_is_set_and_shown_with_the_other_parts(
    settings, services, monkeypatch
):
    class Scorer:
        name = "org/reranker"
        is_multilingual = True

    monkeypatch.setattr(loading, "load_cross_encoder", lambda name: Scorer())
    loading.load_reranker(settings, services)
    assert services.reranker is None
    chosen = settings.model_copy(update={"reranker_model": "org/reranker"})
    loading.load_reranker(chosen, services)
    [check] = [check for check in services.checks() if check.name == "reranker"]
    assert (check.is_ok, check.detail) == (True, "org/reranker")


@pytest.fixture
def with_accounts(settings, tmp_path):
    manual = tmp_path / "manual"
    manual.mkdir()
    (manual / "intro.md").write_text("# Intro")
    return settings.model_copy(update={"auth": "users", "manual_dir": manual})


def queue_manual(settings, services, tmp_path):
    """As a start does it, with a processor that only notes the documents."""
    (tmp_path / "kept").mkdir(exist_ok=True)
    services.processor = FakeProcessor(services.records, tmp_path / "kept")
    loading.queue_manual(settings, services)
    manual = services.records.collections.by_name("Folio manual")
    return GrantRepository(services.records.database).of(manual.id), manual


def test_a_new_manual_is_everyones_to_read_and_stays_taken_back(with_accounts, tmp_path):
    services = build_services(with_accounts)
    grants, manual = queue_manual(with_accounts, services, tmp_path)
    assert grants == (Grant("everyone", None, "reader"),)
    services.accounts.grants.share(manual.id, None, [])
    assert queue_manual(with_accounts, services, tmp_path)[0] == ()
    services.close(1)


def test_a_manual_of_before_is_shared_when_the_first_account_is_made(with_accounts, tmp_path):
    services = build_services(with_accounts.model_copy(update={"auth": "off"}))
    assert services.accounts is None
    assert queue_manual(with_accounts, services, tmp_path)[0] == ()
    services.close(1)
    services = build_services(with_accounts)
    services.accounts.set_up(services.setup_code, "Ada", "correct horse", "")
    assert queue_manual(with_accounts, services, tmp_path)[0] == (
        Grant("everyone", None, "reader"),
    )
    services.close(1)
    services = build_services(with_accounts)
    assert services.setup_code is None
    services.close(1)


def test_accounts_that_are_turned_off_are_warned_of(settings, caplog):
    services = build_services(settings.model_copy(update={"auth": "users"}))
    services.accounts.add("Ada", "correct horse", "admin")
    services.close(1)
    build_services(settings).close(1)
    assert "FOLIO_AUTH=off" in caplog.text
