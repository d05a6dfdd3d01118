"""Ingestion on real parts: parser processes, MiniLM, Milvus Lite, SQLite; and its kill -9 proof."""

import random
import subprocess
import sys
import threading
import time
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import text

from app.domain import EVERYWHERE, DocumentStatus
from app.rag.lexical import query_terms
from tests.rag.ingest_process import build

ROOT = Path(__file__).parent.parent.parent
NUM_DOCUMENTS = 200
NUM_KILLS = 8
WORDS = ["archive", "balance", "canvas", "delta", "engine", "forest", "garden", "harbour", "island"]
WORDS += ["journal", "kernel", "lantern", "meadow", "notice", "orchard", "pattern", "quarry"]


def write_documents(folder, num_documents):
    """Small Markdown and text files; word `unique…` of each is in no other."""
    folder.mkdir()
    rng = random.Random(20)
    for n in range(num_documents):
        paragraphs = [" ".join(rng.choices(WORDS, k=60)) + "." for _ in range(rng.randint(1, 5))]
        paragraphs[0] = f"The code word is {unique_word(n)}. " + paragraphs[0]
        if n % 2:
            body = "\n\n".join(f"## Part {i}\n\n{p}" for i, p in enumerate(paragraphs))
            (folder / f"{n:03}.md").write_text(f"# Document {n}\n\n{body}\n")
        else:
            (folder / f"{n:03}.txt").write_text("\n\n".join(paragraphs))


def unique_word(n):
    letters = "bcdfghjklm"
    return "zq" + "".join(letters[int(digit)] for digit in f"{n:03}") + "xv"


def start_process(data, folder):
    return subprocess.Popen(
        [sys.executable, "-m", "tests.rag.ingest_process", str(data), str(folder)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )


def assert_all_searchable_once(parts, folder, num_documents):
    documents = {d.path: d for d in parts.documents.list(page_size=1000)[0]}
    assert set(documents) == {str(file) for file in folder.iterdir()}
    assert {d.status for d in documents.values()} == {DocumentStatus.READY}
    with parts.database.snapshot() as session:
        chunk_ids = session.scalars(text("SELECT id FROM chunks")).all()
        assert session.scalar(text("SELECT count(*) FROM stale_vectors")) == 0
        places = text("SELECT count(*) FROM (SELECT DISTINCT document_id, position FROM chunks)")
        assert session.scalar(places) == len(chunk_ids)
    assert parts.store.count() == len(chunk_ids) == parts.chunks.num_chunks()
    assert frequencies_of(parts) == frequencies_recounted(parts)
    found = {n: found_by_word(parts, n) for n in range(num_documents)}
    wanted = {n: [str(file)] for n, file in enumerate(sorted(folder.iterdir()))}
    assert found == wanted
    by_vector = {n: nearest(parts, n) for n in range(0, num_documents, 20)}
    assert by_vector == {n: wanted[n][0] for n in by_vector}


def found_by_word(parts, n):
    """The paths of all documents that the lexical leg finds for the word of document n."""
    hits = parts.store.search_sparse(query_terms(unique_word(n)), 10, EVERYWHERE)
    return [path_of(parts, hit.chunk_id) for hit in hits]


def nearest(parts, n):
    """The path of the document that the dense leg finds for the first chunk of document n."""
    document = next(d for d in parts.documents.list(page_size=1000)[0] if f"/{n:03}." in d.path)
    chunk = parts.chunks.list(document.id)[0][0]
    from app.rag.chunker import embedded_text

    vector = parts.embedder.embed_documents([embedded_text(document.title, chunk.span)])[0]
    return path_of(parts, parts.store.search_dense(vector, 1, EVERYWHERE)[0].chunk_id)


def path_of(parts, chunk_id):
    hit = parts.chunks.hits([chunk_id])[chunk_id]
    return parts.documents.get(hit.chunk.document_id).path


def frequencies_of(parts):
    with parts.database.snapshot() as session:
        return dict(session.execute(text("SELECT id, num_chunks FROM index_terms")).all())


def frequencies_recounted(parts):
    from collections import Counter

    from app.db.chunks import unpack

    with parts.database.snapshot() as session:
        packed = session.scalars(text("SELECT term_ids FROM chunks")).all()
    return dict(Counter(term for terms in packed for term in unpack(terms)))


def test_documents_change_and_go_on_real_parts(tmp_path):
    folder = tmp_path / "documents"
    write_documents(folder, 4)
    with closing(build(tmp_path / "data")) as parts:
        parts.processor.start()
        files = sorted(folder.iterdir())
        added = [
            parts.processor.add_file("default", "folder", str(f), f.name, f).document for f in files
        ]
        assert parts.processor.wait_until_idle(60)
        assert_all_searchable_once(parts, folder, 4)
        files[0].write_text(f"Now the code word is {unique_word(0)} and nothing else.")
        changed = parts.processor.add_file(
            "default", "folder", str(files[0]), files[0].name, files[0]
        )
        assert (changed.outcome, changed.document.id) == ("changed", added[0].id)
        assert parts.processor.wait_until_idle(60)
        parts.processor.delete(added[3].id)
        files[3].unlink()
        assert_all_searchable_once(parts, folder, 3)
        assert found_by_word(parts, 3) == []


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_kill_9_at_random_moments_loses_nothing_and_doubles_nothing(tmp_path):
    seed = random.randrange(1 << 32)
    sys.stderr.write(f"seed={seed}\n")
    rng = random.Random(seed)
    data, folder = tmp_path / "data", tmp_path / "documents"
    write_documents(folder, NUM_DOCUMENTS)
    num_kills = 0
    for _ in range(NUM_KILLS):
        process = start_process(data, folder)
        killer = threading.Timer(0, process.kill)
        with process:
            if process.stdout.readline() == "started\n":
                killer = threading.Timer(rng.uniform(0.05, 2.5), process.kill)
                killer.start()
            process.wait(300)
        num_kills += process.returncode == -9
        killer.cancel()
    assert num_kills == NUM_KILLS
    started = time.monotonic()
    with start_process(data, folder) as process:
        assert process.wait(600) == 0
    sys.stderr.write(f"last run: {time.monotonic() - started:.1f} s\n")
    with closing(build(data)) as parts:
        assert parts.processor.wait_until_idle(0)
        assert_all_searchable_once(parts, folder, NUM_DOCUMENTS)
