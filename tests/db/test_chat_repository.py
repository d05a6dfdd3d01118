import pytest

from app.db.chats import ChatRepository, answer_fields, snapshot_of
from app.domain import (
    Answer,
    Box,
    Chunk,
    ChunkSpan,
    Citation,
    GeneratorInfo,
    HitScores,
    SearchHit,
    Source,
    Timings,
    Usage,
)
from app.errors import NotFound

SPAN = ChunkSpan(3, 9, "年假十五天", ("手册", "假期"), 4, 2, (Box(2, 0.1, 0.2, 0.3, 0.4),))
HIT = SearchHit(
    Chunk("c1", "d1", "default", 5, SPAN), "a.pdf", "手册", 0.75, HitScores(0.5, None, None)
)
ANSWER = Answer(
    text="十五天 [1]",
    sources=(Source(1, HIT),),
    citations=(Citation(1, "c1", 0, 7),),
    is_refusal=False,
    generator=GeneratorInfo("extractive", "extractive", "note"),
    usage=Usage(10, 5),
    timings=Timings(0.1, 0.2, 0.3),
    query="年假有几天？",
)


@pytest.fixture
def chats(database):
    return ChatRepository(database)


@pytest.fixture
def chat(chats):
    return chats.create("Holidays", ["default"])


def test_question_and_running_answer_are_added_in_order(chats, chat):
    chats.add_question_and_answer(chat.id, "one?", "run-1")
    question, answer = chats.add_question_and_answer(chat.id, "two?", "run-2")
    read = chats.get(chat.id)
    assert [m.content for m in read.messages] == ["one?", "", "two?", ""]
    assert read.messages[2:] == (question, answer)
    assert (question.state, question.run_id) == ("done", None)
    assert (answer.state, answer.run_id, answer.role) == ("running", "run-2", "assistant")


def test_finished_answer_keeps_its_sources_and_citations(chats, chat):
    _, running = chats.add_question_and_answer(chat.id, "how many?", "run")
    finished = chats.finish_message(running.id, ANSWER, "done")
    assert finished == chats.message(running.id) == chats.get(chat.id).messages[1]
    assert (finished.content, finished.state) == (ANSWER.text, "done")
    assert (finished.sources, finished.citations) == (ANSWER.sources, ANSWER.citations)
    assert (finished.generator, finished.usage, finished.timings) == (
        ANSWER.generator,
        ANSWER.usage,
        ANSWER.timings,
    )
    assert finished.query == ANSWER.query


def test_answers_of_before_queries_were_kept_are_still_read():
    kept = snapshot_of(ANSWER)
    del kept["query"]
    assert answer_fields(kept)["query"] == ""


def test_failed_answer_keeps_what_was_written(chats, chat):
    _, running = chats.add_question_and_answer(chat.id, "how many?", "run")
    failed = chats.finish_message(running.id, "Fif", "failed", "the model went away")
    assert (failed.content, failed.state, failed.error) == ("Fif", "failed", "the model went away")


def test_answers_interrupted_by_a_dead_process_fail(chats, chat):
    _, running = chats.add_question_and_answer(chat.id, "how many?", "run")
    assert chats.fail_interrupted() == 1
    assert chats.fail_interrupted() == 0
    message = chats.message(running.id)
    assert message.state == "failed"
    assert "ask again" in message.error


def test_feedback_is_kept_and_taken_back(chats, chat):
    _, running = chats.add_question_and_answer(chat.id, "how many?", "run")
    assert chats.set_feedback(running.id, -1, "wrong page").feedback == -1
    assert chats.set_feedback(running.id, 0).feedback == 0


def test_chats_are_listed_last_used_first_and_searched(chats, chat):
    other = chats.create("Travel", [])
    assert [c.title for c in chats.list()] == ["Travel", "Holidays"]
    chats.add_question_and_answer(chat.id, "How many days of 年假?", "run")
    assert [c.title for c in chats.list()] == ["Holidays", "Travel"]
    assert [c.id for c in chats.list("travel")] == [other.id]
    assert [c.id for c in chats.list("年假")] == [chat.id]
    assert chats.list("%") == []
    assert len(chats.list(limit=1)) == 1


def test_renamed_and_deleted(chats, chat):
    chats.add_question_and_answer(chat.id, "how many?", "run")
    assert chats.rename(chat.id, "Leave").title == chats.get(chat.id).title == "Leave"
    chats.delete(chat.id)
    for call in (chats.get, chats.delete, chats.message):
        with pytest.raises(NotFound):
            call(chat.id)
