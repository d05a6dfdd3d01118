"""Parsers on the real and the broken files of the test data, each in its process and limits."""

import random
import time
from contextlib import closing

import pytest

from app.domain import ParsedDocument
from app.errors import FolioError
from app.rag.parsers import SubprocessParser, parse_file
from app.rag.parsers.quality import evaluate_formats, parse_as_stored
from tests.rag.files import shared_data

TIMEOUT_S = 60
MEMORY_MB = 2048
NUM_MUTATIONS = 2
MAX_FUZZED_BYTES = 300_000
OCR_SUFFIXES = {".png", ".jpg", ".jpeg"}


@pytest.fixture(scope="module")
def parser():
    with closing(SubprocessParser(TIMEOUT_S, MEMORY_MB)) as parser:
        yield parser


def outcome(parser, path):
    """The parsed document, or the reason why there is none; never another exception."""
    try:
        return parse_as_stored(path, parser)
    except FolioError as error:
        return str(error)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_nearly_all_expected_strings_are_found(parser):
    report = evaluate_formats(shared_data("formats"), parser)

    assert report.share >= 0.98, "\n".join(report.misses)


def test_the_name_says_what_a_file_is_and_not_its_path(tmp_path):
    """The file store keeps files under their hash, without a suffix."""
    different = []
    for path in sorted(shared_data("formats").iterdir()):
        if path.suffix in OCR_SUFFIXES | {".pdf"} or path.name.startswith(("ocr_", "README")):
            continue
        stored = tmp_path / "stored"
        stored.write_bytes(path.read_bytes())
        if parse_file(stored, path.name, "") != parse_file(path, path.name, ""):
            different.append(path.name)
    assert different == []


def test_each_malformed_file_ends_in_text_or_a_reason(parser):
    results = {}
    for path in sorted(shared_data("malformed").iterdir()):
        start = time.monotonic()
        results[path.name] = outcome(parser, path)
        assert time.monotonic() - start < TIMEOUT_S

    texts = {name for name, result in results.items() if isinstance(result, ParsedDocument)}
    assert {"copy-protected.pdf", "failure-after-repair.pdf", "testExternalRefs.docx"} <= texts
    reasons = {name: result for name, result in results.items() if name not in texts}
    assert all(name in reason for name, reason in reasons.items())
    protected = {name for name, reason in reasons.items() if "password" in reason}
    assert protected == {
        "2206.01062_pg3.pdf",
        "password-example.pdf",
        "password_protected.xlsx",
        "testEXCEL_protected_passtika.xlsx",
        "testPPT_protected_passtika.pptx",
        "testWORD_protected_passtika.docx",
    }


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_mutated_files_end_in_text_or_a_reason(parser, tmp_path):
    rng = random.Random(7)
    num_outcomes = 0
    for path in sorted(shared_data("formats").iterdir()):
        data = path.read_bytes()
        if path.suffix in OCR_SUFFIXES or len(data) > MAX_FUZZED_BYTES or "scan" in path.name:
            continue
        for number in range(NUM_MUTATIONS):
            mutated = tmp_path / f"{number}{path.suffix}"
            mutated.write_bytes(mutate(data, rng))
            outcome(parser, mutated)
            num_outcomes += 1

    assert num_outcomes > 50 * NUM_MUTATIONS


def mutate(data, rng):
    """Cut the end off, or overwrite bytes, or put a piece elsewhere."""
    changed = bytearray(data)
    match rng.randrange(3):
        case 0:
            return bytes(changed[: rng.randrange(len(changed))])
        case 1:
            for _ in range(rng.randint(1, 50)):
                changed[rng.randrange(len(changed))] = rng.randrange(256)
        case _:
            start, end = sorted(rng.sample(range(len(changed)), 2))
            at = rng.randrange(len(changed))
            changed[at:at] = changed[start:end]
    return bytes(changed)
