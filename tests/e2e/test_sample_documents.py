"""Real documents in English and Chinese, loaded by ./scripts/init-data, asked about over HTTP."""

import json
import subprocess
from pathlib import Path

import httpx
import pytest

from app.scripts.evaluate.demo import holds
from tests.e2e.appliance import start_appliance
from tests.e2e.test_appliance import ask

ROOT = Path(__file__).parents[2]
SAMPLES = ROOT.parent / "shared" / "data" / "sample_docs"
NUM_SOURCES = 5
LEAST_FOUND = 17  # of 19

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.timeout(600),
    pytest.mark.skipif(not SAMPLES.is_dir(), reason=f"the sample documents are not at {SAMPLES}"),
]


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    data_dir = tmp_path_factory.mktemp("samples") / "data"
    appliance = start_appliance(data_dir, "--no-manual")
    try:
        # The folders, without the file of questions beside them.
        folders = [path for path in SAMPLES.iterdir() if path.is_dir()]
        options = ["--data-dir", data_dir, "--url", appliance.url]
        subprocess.run([ROOT / "scripts/init-data", *folders, *options], check=True, timeout=400)
        with httpx.Client(base_url=appliance.url, timeout=60) as client:
            yield client
    finally:
        appliance.stop()


@pytest.fixture(scope="module")
def answers(client):
    """Each question with the finished message that answers it."""
    lines = (SAMPLES / "demo_questions.jsonl").read_text().splitlines()
    questions = [json.loads(line) for line in lines]
    return [(question, ask(client, question["question"])[0]) for question in questions]


def test_the_passage_is_among_the_first_sources(answers):
    missed = [
        question["id"]
        for question, message in answers
        if question["answerable"]
        and not any(
            source["document_name"] == Path(question["file"]).name
            and holds(source["text"], question["passage"])
            for source in message["sources"][:NUM_SOURCES]
        )
    ]
    num_answerable = sum(question["answerable"] for question, _ in answers)
    assert num_answerable - len(missed) >= LEAST_FOUND, missed


def test_most_questions_are_answered(answers):
    refused = [q["id"] for q, message in answers if q["answerable"] and message["is_refusal"]]
    assert len(refused) <= 1, refused


def test_what_the_documents_do_not_say_is_refused(answers):
    answered = [
        question["id"]
        for question, message in answers
        if not question["answerable"] and not message["is_refusal"]
    ]
    assert not answered


def test_every_answer_is_cited_or_a_refusal(answers):
    uncited = [
        question["id"]
        for question, message in answers
        if not message["is_refusal"] and not message["citations"]
    ]
    assert not uncited
