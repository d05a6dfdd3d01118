import json
from types import SimpleNamespace

import pytest

from app.db.collections import CollectionRepository
from app.db.documents import DocumentRepository
from app.db.jobs import JobRepository
from app.db.session import Database
from app.manual import COLLECTION, add_manual, sample_questions
from tests.api.conftest import FakeProcessor

QUESTIONS = {"en": ["What is Folio?"], "zh": ["Folio 是什么？"]}


class Home:
    """A data folder and a manual of two pages."""

    def __init__(self, folder):
        self.folder = folder
        self.manual = folder / "docs"
        (self.manual / "zh").mkdir(parents=True)
        (self.manual / "intro.md").write_text("# Folio")
        (self.manual / "zh" / "intro.md").write_text("# Folio 手册")
        (self.manual / "sample_questions.json").write_text(json.dumps(QUESTIONS))
        (self.manual / "picture.bin").write_bytes(b"0")
        (self.manual / "zh" / "kubernetes.md").write_text("helm install folio deploy/helm/folio")
        (folder / "files").mkdir()
        self.database = Database(f"sqlite:///{folder / 'folio.db'}")
        self.database.migrate()
        self.documents = DocumentRepository(self.database)
        self.collections = CollectionRepository(self.database)
        records = SimpleNamespace(documents=self.documents, jobs=JobRepository(self.database))
        self.processor = FakeProcessor(records, folder / "files")

    def add(self):
        suffixes = {".md", ".json"}
        return add_manual(self.processor, self.collections, self.manual, suffixes, self.folder)

    def paths(self):
        return sorted(document.path for document in self.documents.list()[0])

    def questions(self):
        return sample_questions(self.documents, self.collections, self.manual)


@pytest.fixture
def home(tmp_path):
    home = Home(tmp_path)
    yield home
    home.database.close()


def test_first_start_adds_the_pages_into_a_collection_of_their_own(home):
    assert home.add() == 2
    assert home.paths() == ["intro.md", "zh/intro.md"]
    assert {c.name for c in home.collections.list()} == {"default", COLLECTION}


def test_later_start_adds_only_what_changed(home):
    home.add()
    (home.manual / "intro.md").write_text("# Folio 2")
    assert home.add() == 1
    assert home.paths() == ["intro.md", "zh/intro.md"]


def test_manual_that_was_deleted_stays_deleted(home):
    home.add()
    home.documents.delete_collection(home.collections.by_name(COLLECTION).id)
    assert home.add() == 0
    assert home.paths() == []


def test_missing_folder_is_no_error(home):
    home.manual = home.folder / "nowhere"
    assert home.add() == 0
    assert [c.name for c in home.collections.list()] == ["default"]


def test_questions_come_from_titles_until_the_manual_can_be_asked(home):
    home.add()
    assert home.questions() == {"en": [], "zh": []}


def test_questions_of_the_manual_are_suggested_when_it_is_ready(home, monkeypatch):
    home.add()
    counts = home.documents.counts()
    ready = type(counts)(2, 2, 0, 0, 2)
    monkeypatch.setattr(home.documents, "counts", lambda collection_id: ready)
    assert home.questions() == QUESTIONS
    (home.manual / "sample_questions.json").write_text("broken")
    monkeypatch.setattr(home.documents, "sample_titles", lambda limit, within: ["Intro"])
    assert home.questions() == {"en": ["What does “Intro” say?"], "zh": ["《Intro》讲了什么？"]}
