"""The proof of ingestion: thousands of real files, kill -9 at random moments, nothing lost.

    python -m app.scripts.prove_ingestion ../shared/data

Writes real passages (of question sets and textbooks, one file each) and mixed files (every sample
and every malformed file, then copies with other bytes) into a folder, and has
`python -m app.scripts.initialize_data` ingest it, killed again and again, then once to its end.
Then SQL and the index are compared: each file is one document, ready or failed with a reason; each
chunk has one vector and no vector is left over; no job is unfinished; sampled passages are found.
"""

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from app.config import Settings
from app.domain import EVERYWHERE, Document, DocumentStatus
from app.errors import FolioError, InvalidInput
from app.services import Services
from app.wiring.appliance import build_services

ROOT = Path(__file__).parent.parent.parent
MIN_PASSAGE, MAX_PASSAGE = 200, 3000  # characters
COPIED = frozenset(
    [
        ".txt",
        ".md",
        ".rst",
        ".csv",
        ".json",
        ".xml",
        ".html",
        ".htm",
        ".eml",
        ".rtf",
        ".docx",
        ".pptx",
        ".xlsx",
        ".odt",
        ".epub",
        ".pdf",
    ]
)
MAX_COPIED_BYTES = 60_000
SLOW_NAMES = ("ocr", "scan", "image")  # text recognition takes seconds a page: once is enough
FIRST_KILL_S, LAST_KILL_S = 4.0, 40.0
SAMPLE_S = 0.5
RUN_LIMIT_S = 3600.0
PAGE_SIZE = 500
NUM_ASKED = 200
NUM_HITS = 5
CLOSE_TIMEOUT_S = 30.0
console = Console(highlight=False)


@dataclass(slots=True)
class Proof:
    """What was done and found; it holds when `problems` is empty."""

    num_files: int = 0
    num_kills: int = 0
    seconds: float = 0.0
    last_run_s: float = 0.0
    peak_memory_mb: float = 0.0
    num_ready: int = 0
    num_failed: int = 0
    num_skipped: int = 0  # of formats that no parser reads: refused by name
    num_pages: int = 0
    num_chunks: int = 0
    num_found: int = 0
    num_asked: int = 0
    reasons: dict[str, int] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


def main(  # noqa: PLR0913 - the options of a command
    data: Annotated[Path, typer.Argument(help="Folder with retrieval, train, formats, malformed.")],
    passages: Annotated[int, typer.Option(help="Real passages, one file each.")] = 10_000,
    files: Annotated[int, typer.Option(help="Mixed files.")] = 1000,
    kills: Annotated[int, typer.Option(help="How often to kill.")] = 10,
    seed: Annotated[int, typer.Option(help="Of the moments and the choice.")] = 1,
    work_dir: Annotated[Path | None, typer.Option(help="Where to work; it is kept.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the result here.")] = None,
) -> None:
    """Ingest, kill, and compare. Ends with status 1 where something was lost or doubled."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = (work_dir or Path(temporary)).absolute()
        try:
            proof = prove(data, folder, (passages, files), kills, random.Random(seed))
        except FolioError as error:
            console.print(f"prove-ingestion: {error}", style="red")
            raise typer.Exit(2) from error
    show(proof)
    if json_file:
        json_file.write_text(json.dumps(asdict(proof), indent=2, ensure_ascii=False))
    if proof.problems:
        raise typer.Exit(1)


def prove(
    data: Path, folder: Path, num: tuple[int, int], num_kills: int, rng: random.Random
) -> Proof:
    """Write the files, ingest them under fire, and compare what there is."""
    documents = folder / "documents"
    with console.status("writing the files"):
        write_files(data, documents, *num, rng)
    proof = Proof(num_files=sum(1 for _ in documents.iterdir()))
    started = time.monotonic()
    for number in range(num_kills):
        delay_s = rng.uniform(FIRST_KILL_S, LAST_KILL_S)
        was_killed = ingest(folder, proof, delay_s) == -signal.SIGKILL
        proof.num_kills += was_killed
        console.print(f"run {number + 1}: killed {was_killed} after {delay_s:.1f} s")
    last_started = time.monotonic()
    status = ingest(folder, proof, RUN_LIMIT_S)
    proof.last_run_s = time.monotonic() - last_started
    proof.seconds = time.monotonic() - started
    if status not in (0, 1):  # 1: some files failed, as broken ones do
        proof.problems.append(f"the last run ended with status {status}")
    with console.status("comparing"):
        compare(folder, documents, proof, rng)
    return proof


def write_files(
    data: Path, folder: Path, num_passages: int, num_files: int, rng: random.Random
) -> None:
    """One file a passage, and the mixed files; InvalidInput where the data are too few."""
    folder.mkdir(parents=True)
    passages = list(dict.fromkeys(read_passages(data)))
    if len(passages) < num_passages:
        raise InvalidInput(f"{data} holds {len(passages)} passages, {num_passages} are wanted")
    rng.shuffle(passages)
    for number, text in enumerate(passages[:num_passages]):
        (folder / f"passage-{number:05}.txt").write_text(text, "utf-8")
    samples = sorted(
        path
        for name in ("formats", "malformed")
        for path in (data / name).iterdir()
        if path.name not in ("expected.json", "manifest.json", "notes.json")
    )
    copied = [path for path in samples if is_copied(path)]
    for number in range(num_files):
        is_original = number < len(samples)
        source = samples[number] if is_original else copied[number % len(copied)]
        # Readers of every format pass over what stands behind the end.
        tail = b"" if is_original else f"\n{number}\n".encode()
        (folder / f"mixed-{number:04}-{source.name}").write_bytes(source.read_bytes() + tail)


def is_copied(path: Path) -> bool:
    """Whether it is small and read without text recognition."""
    is_slow = any(word in path.name.lower() for word in SLOW_NAMES)
    return path.suffix in COPIED and path.stat().st_size <= MAX_COPIED_BYTES and not is_slow


def read_passages(data: Path) -> Iterator[str]:
    """Paragraphs of the retrieval sets and of the textbooks."""
    for corpus in sorted((data / "retrieval").glob("*/corpus.jsonl")):
        for line in corpus.read_text("utf-8").splitlines():
            yield from cut(json.loads(line)["text"].split("\n\n"))
    for line in (data / "train" / "openstax_ccby_text.jsonl").read_text("utf-8").splitlines():
        yield from cut(json.loads(line)["paragraphs"])


def cut(paragraphs: Sequence[str]) -> Iterator[str]:
    """Those long enough to say something, shortened where they are very long."""
    for paragraph in paragraphs:
        text = paragraph.strip()[:MAX_PASSAGE]
        if len(text) >= MIN_PASSAGE:
            yield text


def ingest(folder: Path, proof: Proof, limit_s: float) -> int:
    """Run init-data on the files, kill -9 after `limit_s`; returns the exit status."""
    command = [sys.executable, "-m", "app.scripts.initialize_data", str(folder / "documents")]
    with (folder / "log.txt").open("ab") as log:
        process = subprocess.Popen(
            [*command, "--data-dir", str(folder / "data")], cwd=ROOT, stdout=log, stderr=log
        )
    killer = threading.Timer(limit_s, process.kill)
    killer.start()
    try:
        while process.poll() is None:
            proof.peak_memory_mb = max(proof.peak_memory_mb, tree_memory_mb(process.pid))
            time.sleep(SAMPLE_S)
    finally:
        killer.cancel()
    return process.returncode


def tree_memory_mb(pid: int) -> float:
    """Proportional memory of a process and all below it; 0 once it is gone."""
    total_kb = 0
    for member in [pid, *descendants(pid)]:
        try:
            lines = Path(f"/proc/{member}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue
        total_kb += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total_kb / 1024


def descendants(pid: int) -> list[int]:
    """The processes that this one started, and theirs."""
    children: list[int] = []
    for entry in os.scandir("/proc"):
        if not entry.name.isdigit():
            continue
        try:
            parent = Path(entry.path, "stat").read_text().rpartition(")")[2].split()[1]
        except OSError:
            continue
        if int(parent) == pid:
            children.append(int(entry.name))
    return children + [below for child in children for below in descendants(child)]


def compare(folder: Path, documents: Path, proof: Proof, rng: random.Random) -> None:
    """Hold SQL, the index and the files against each other."""
    from app.wiring.loading import load_ingestion  # noqa: PLC0415 - torch takes seconds

    settings = Settings(data_dir=folder / "data", manual_dir=None)
    services = build_services(settings)
    try:
        load_ingestion(settings, services)
        found = list(all_documents(services))
        readable = services.limits.upload_suffixes
        wanted = {str(path) for path in documents.iterdir() if path.suffix.lower() in readable}
        proof.num_skipped = proof.num_files - len(wanted)
        compare_documents(found, wanted, proof)
        compare_chunks(services, proof)
        ready = [item for item in found if item.status == DocumentStatus.READY]
        passages = [item for item in ready if item.name.startswith("passage")]
        ask(services, rng.sample(passages, min(NUM_ASKED, len(passages))), proof)
    finally:
        services.close(CLOSE_TIMEOUT_S)


def all_documents(services: Services) -> Iterator[Document]:
    """The whole library."""
    page = 1
    while items := services.records.documents.list(page=page, page_size=PAGE_SIZE)[0]:
        yield from items
        page += 1


def compare_documents(found: Sequence[Document], wanted: AbstractSet[str], proof: Proof) -> None:
    """Each path is one document, which is ready or failed with a reason."""
    times = Counter(item.path for item in found)
    proof.problems += [f"lost: {path}" for path in sorted(wanted - set(times))]
    proof.problems += [f"twice: {path}" for path, num in times.items() if num > 1]
    for item in found:
        if item.status == DocumentStatus.FAILED:
            proof.num_failed += 1
            if not item.error:
                proof.problems.append(f"failed without a reason: {item.path}")
        elif item.status == DocumentStatus.READY:
            proof.num_ready += 1
            proof.num_pages += item.num_pages or 1
        else:
            proof.problems.append(f"unfinished: {item.path} is {item.stage}")
    # Copies fail as their original does.
    failed = (item.error or "" for item in found if item.status == DocumentStatus.FAILED)
    proof.reasons = dict(Counter(reason[:60] for reason in failed).most_common(20))


def compare_chunks(services: Services, proof: Proof) -> None:
    """Each chunk has one vector, and no vector is without its chunk."""
    assert services.store is not None
    proof.num_chunks = services.records.chunks.num_chunks()
    num_vectors = services.store.count()
    if num_vectors != proof.num_chunks:
        proof.problems.append(f"{proof.num_chunks} chunks, but {num_vectors} vectors")
    index_name = services.store.index_name
    if num_stale := len(services.records.chunks.stale_vectors(index_name)):
        proof.problems.append(f"the vectors of {num_stale} documents are left over")


def ask(services: Services, asked: Sequence[Document], proof: Proof) -> None:
    """Passages are found by their own words; equal ones may stand in for each other."""
    assert services.embedder is not None and services.store is not None
    for item in asked:
        (chunk, *_), _ = services.records.chunks.list(item.id, page_size=1)
        [vector] = services.embedder.embed_documents([f"{item.title}\n{chunk.span.text}"])
        ids = [hit.chunk_id for hit in services.store.search_dense(vector, NUM_HITS, EVERYWHERE)]
        hits = services.records.chunks.hits(ids).values()
        proof.num_asked += 1
        if any(hit.chunk.document_id == item.id for hit in hits):
            proof.num_found += 1
        else:
            proof.problems.append(f"not found by its own words: {item.path}")


def show(proof: Proof) -> None:
    """The figures, and what is wrong."""
    table = Table("proof", "")
    for name, value in asdict(proof).items():
        if name not in ("reasons", "problems"):
            table.add_row(name, f"{value:.1f}" if isinstance(value, float) else str(value))
    table.add_row("documents/s", f"{proof.num_files / max(1e-9, proof.seconds):.1f}")
    table.add_row("pages/s", f"{proof.num_pages / max(1e-9, proof.seconds):.1f}")
    console.print(table)
    for reason, num in proof.reasons.items():
        console.print(f"failed {num}: {reason}", markup=False)
    for problem in proof.problems[:50]:
        console.print(problem, style="red", markup=False)
    console.print("holds" if not proof.problems else f"{len(proof.problems)} problems")


if __name__ == "__main__":
    typer.run(main)
