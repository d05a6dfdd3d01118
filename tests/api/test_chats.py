"""Chats over a real server: asking, streaming, stopping, resuming."""

import json
import threading
import time

import httpx
import pytest

from app.domain import Failed, Message, SearchScope
from app.errors import Unavailable


@pytest.fixture
def http(server):
    with httpx.Client(base_url=server, timeout=10) as client:
        yield client


@pytest.fixture
def chat(http):
    return http.post("/api/chats", json={}).json()


def ask(http, chat, text="How much leave do employees get?", **fields):
    reply = http.post(f"/api/chats/{chat['id']}/messages", json={"text": text, **fields})
    assert reply.status_code == 202, reply.text
    return reply.json()


def events_of(lines):
    """(id, name, data) of each event of a stream of lines."""
    fields = {}
    for line in lines:
        if line == "" and fields:
            yield int(fields.get("id", 0)), fields["event"], json.loads(fields["data"])
            fields = {}
        elif line and not line.startswith(":"):
            key, _, value = line.partition(": ")
            fields[key] = value


def follow(http, run_id, after=0, headers=None):
    url = f"/api/runs/{run_id}/events"
    with http.stream("GET", url, params={"after": after}, headers=headers) as reply:
        assert reply.headers["content-type"].startswith("text/event-stream")
        assert reply.headers["x-accel-buffering"] == "no"
        yield from events_of(reply.iter_lines())


def wait_for(condition, timeout_s=5):
    deadline = time.monotonic() + timeout_s
    while not (value := condition()):
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)
    return value


def test_answer_is_streamed_and_stored(http, chat):
    run = ask(http, chat)
    assert (run["question"]["state"], run["answer"]["state"]) == ("done", "running")
    events = list(follow(http, run["run_id"]))
    names = [name for _, name, _ in events]
    assert names[:3] == ["stage", "sources", "stage"]
    assert names[-2:] == ["cited", "done"]
    text = "".join(data["text"] for _, name, data in events if name == "token")
    assert text == "Leave is fifteen days [1]."
    assert [source["number"] for source in events[1][2]["sources"]] == [1, 2]
    done = events[-1][2]
    assert (done["content"], done["state"], done["run_id"]) == (text, "done", run["run_id"])
    assert done["citations"][0]["chunk_id"] == done["sources"][0]["chunk_id"]
    stored = http.get(f"/api/chats/{chat['id']}").json()
    assert stored["messages"][1] == done
    assert stored["messages"][0]["content"] == "How much leave do employees get?"


def test_ids_count_up_and_a_finished_run_is_replayed_with_its_text_in_one_event(http, chat):
    run = ask(http, chat)
    list(follow(http, run["run_id"]))
    events = list(follow(http, run["run_id"]))
    ids = [id for id, _, _ in events]
    assert ids == sorted(set(ids))
    assert [name for _, name, _ in events].count("token") == 1


@pytest.mark.parametrize("by_header", [True, False])
def test_lost_connection_resumes_after_the_last_event_seen(http, chat, pipeline, by_header):
    pipeline.pieces = [f"word{n} " for n in range(50)]
    pipeline.gate, pipeline.gate_at = threading.Event(), 10
    run = ask(http, chat)
    seen, last_id = "", 0
    for id, name, data in follow(http, run["run_id"]):
        last_id = id
        seen += data["text"] if name == "token" else ""
        if seen.endswith("word9 "):
            break
    pipeline.gate.set()
    where = {"headers": {"Last-Event-ID": str(last_id)}} if by_header else {"after": last_id}
    for id, name, data in follow(http, run["run_id"], **where):
        assert id > last_id
        seen += data["text"] if name == "token" else ""
    assert seen == "".join(pipeline.pieces)


def test_two_clients_see_the_same_answer(http, chat, pipeline):
    pipeline.gate = threading.Event()
    run = ask(http, chat)
    texts = []

    def read():
        events = list(follow(http, run["run_id"]))
        texts.append("".join(data["text"] for _, name, data in events if name == "token"))

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    pipeline.gate.set()
    for reader in readers:
        reader.join(10)
    assert texts == ["Leave is fifteen days [1]."] * 2


def test_run_goes_on_without_a_listener_and_a_refreshed_page_finds_it(http, chat, pipeline):
    pipeline.gate = threading.Event()
    run = ask(http, chat)
    answer = http.get(f"/api/chats/{chat['id']}").json()["messages"][-1]
    assert (answer["state"], answer["run_id"]) == ("running", run["run_id"])
    pipeline.gate.set()
    wait_for(lambda: http.get(f"/api/chats/{chat['id']}").json()["messages"][-1]["state"] == "done")


def test_stopping_keeps_the_text_and_its_sources(http, chat, pipeline):
    pipeline.gate, pipeline.gate_at = threading.Event(), 2
    run = ask(http, chat)
    events = follow(http, run["run_id"])
    for _, name, data in events:
        if name == "token" and data["text"].endswith("days "):
            break
    assert http.delete(f"/api/runs/{run['run_id']}").status_code == 204
    _, name, message = list(follow(http, run["run_id"]))[-1]
    assert name == "stopped"
    assert (message["state"], message["content"]) == ("stopped", "Leave is fifteen days ")
    assert len(message["sources"]) == 2
    assert pipeline.num_closed == 1
    assert http.get(f"/api/chats/{chat['id']}").json()["messages"][-1] == message


def test_stopping_twice_changes_nothing(http, chat):
    run = ask(http, chat)
    list(follow(http, run["run_id"]))
    assert http.delete(f"/api/runs/{run['run_id']}").status_code == 204
    assert http.get(f"/api/chats/{chat['id']}").json()["messages"][-1]["state"] == "done"


@pytest.mark.parametrize(
    ("error", "code"),
    [(Unavailable("the model is away"), "unavailable"), (ValueError("bug"), "internal")],
)
def test_failure_ends_the_stream_with_an_error_and_keeps_the_text(
    http, chat, pipeline, error, code
):
    pipeline.error = error
    run = ask(http, chat)
    _, name, data = list(follow(http, run["run_id"]))[-1]
    assert (name, data["code"]) == ("error", code)
    answer = http.get(f"/api/chats/{chat['id']}").json()["messages"][-1]
    assert (answer["state"], answer["content"]) == ("failed", "Leave is fifteen days [1].")
    assert answer["error"] == data["message"]


def test_failed_event_of_the_pipeline_reaches_the_client(http, chat, pipeline):
    pipeline.ending = Failed("overloaded", "too many", 3.5)
    run = ask(http, chat)
    _, name, data = list(follow(http, run["run_id"]))[-1]
    assert (name, data) == (
        "error",
        {"code": "overloaded", "message": "too many", "retry_after_s": 3.5},
    )


def test_second_question_in_a_running_chat_is_a_conflict(http, chat, pipeline):
    pipeline.gate = threading.Event()
    ask(http, chat)
    reply = http.post(f"/api/chats/{chat['id']}/messages", json={"text": "And?"})
    assert (reply.status_code, reply.json()["error"]["code"]) == (409, "conflict")
    pipeline.gate.set()


def test_questions_over_the_limit_get_429_with_retry_after_and_are_not_stored(http, pipeline):
    pipeline.gate = threading.Event()
    chats = [http.post("/api/chats", json={}).json() for _ in range(4)]
    for chat in chats[:3]:
        ask(http, chat)
    reply = http.post(f"/api/chats/{chats[3]['id']}/messages", json={"text": "And me?"})
    assert (reply.status_code, reply.json()["error"]["code"]) == (429, "overloaded")
    assert int(reply.headers["retry-after"]) >= 1
    assert http.get(f"/api/chats/{chats[3]['id']}").json()["messages"] == []
    assert len(pipeline.questions) == 3
    pipeline.gate.set()


def test_follow_up_sees_the_conversation(http, chat, pipeline):
    run = ask(http, chat, "How much leave?")
    list(follow(http, run["run_id"]))
    run = ask(http, chat, "And in May?", language="zh")
    list(follow(http, run["run_id"]))
    question = pipeline.questions[-1]
    assert question.history == (
        Message("user", "How much leave?"),
        Message("assistant", "Leave is fifteen days [1]."),
    )
    assert (question.text, question.language) == ("And in May?", "zh")


def test_chat_asks_only_its_collections(http, pipeline):
    chat = http.post("/api/chats", json={"collection_ids": ["default"]}).json()
    list(follow(http, ask(http, chat)["run_id"]))
    assert pipeline.questions[-1].scope == SearchScope(("default",))


def test_chat_whose_knowledge_base_was_deleted_says_so(http, pipeline):
    law = http.post("/api/collections", json={"name": "Law"}).json()
    chat = http.post("/api/chats", json={"collection_ids": [law["id"], "default"]}).json()
    http.delete(f"/api/collections/{law['id']}")
    reply = http.post(f"/api/chats/{chat['id']}/messages", json={"text": "How much leave?"})
    assert (reply.status_code, reply.json()["error"]["code"]) == (404, "not_found")
    assert law["id"] in reply.json()["error"]["message"]
    assert "deleted" in reply.json()["error"]["message"]
    assert http.get(f"/api/chats/{chat['id']}").json()["messages"] == []
    assert pipeline.questions == []


@pytest.mark.parametrize("path", ["/api/chats", "/api/search"])
def test_collections_are_limited_and_each_is_asked_once(http, path):
    body = {"query": "leave"} if path == "/api/search" else {}
    reply = http.post(path, json=body | {"collection_ids": ["default"] * 2})
    assert reply.json().get("collection_ids", ["default"]) == ["default"]
    assert http.post(path, json=body | {"collection_ids": ["default"] * 101}).status_code == 422


@pytest.mark.parametrize("header", ["\u00b2", "-1", "x", "9" * 5000])
def test_last_event_id_that_is_no_number_starts_from_the_beginning(http, chat, header):
    run = ask(http, chat)
    list(follow(http, run["run_id"]))
    headers = {"Last-Event-ID": header.encode("latin-1")}
    names = [name for _, name, _ in follow(http, run["run_id"], headers=headers)]
    assert (names[0], names[-1]) == ("stage", "done")


def test_nul_in_a_question_or_a_filter_is_left_out(http, chat, pipeline):
    list(follow(http, ask(http, chat, "How\0 much?")["run_id"]))
    assert pipeline.questions[-1].text == "How much?"
    assert http.post(f"/api/chats/{chat['id']}/messages", json={"text": "\0"}).status_code == 422
    assert [c["id"] for c in http.get("/api/chats?q=how%00").json()] == [chat["id"]]
    assert http.get("/api/documents?q=%00").json()["total"] == 0
    assert http.post("/api/search", json={"query": "\0leave"}).json()["query"] == "leave"


def test_a_refused_value_is_named_by_its_place_and_not_by_validators(http):
    reply = http.post("/v1/vector_stores/default/search", json={"query": ""})
    message = reply.json()["error"]["message"]
    assert message.startswith("body.query: ")
    assert ("validator" in message, "0x" in message) == (False, False)


def test_half_a_surrogate_pair_in_a_question_is_replaced(http):
    headers = {"content-type": "application/json"}
    half = http.post("/api/search", content=rb'{"query": "leave \ud83d?"}', headers=headers)
    whole = http.post("/api/search", content=rb'{"query": "leave \ud83d\ude00?"}', headers=headers)
    assert [r.json()["query"] for r in (half, whole)] == ["leave \ufffd?", "leave \U0001f600?"]


@pytest.mark.parametrize(
    ("question", "title"),
    [
        ("How much leave?\nPlease!", "How much leave?"),
        ("word " * 30, ("word " * 12).rstrip() + "…"),
        ("年" * 80, "年" * 60 + "…"),
    ],
)
def test_chat_takes_its_title_from_the_first_question(http, chat, question, title):
    list(follow(http, ask(http, chat, question)["run_id"]))
    list(follow(http, ask(http, chat, "Another one")["run_id"]))
    assert http.get(f"/api/chats/{chat['id']}").json()["title"] == title


def test_chats_are_listed_found_renamed_and_deleted(http, chat):
    list(follow(http, ask(http, chat)["run_id"]))
    url = f"/api/chats/{chat['id']}"
    assert http.patch(url, json={"title": "Holidays"}).json()["title"] == "Holidays"
    assert [c["id"] for c in http.get("/api/chats", params={"q": "holi"}).json()] == [chat["id"]]
    assert http.get("/api/chats", params={"q": "nothing like it"}).json() == []
    assert http.delete(url).status_code == 204
    assert http.get(url).status_code == 404


def test_deleting_a_chat_stops_its_answer(http, chat, pipeline):
    pipeline.gate = threading.Event()
    ask(http, chat)
    wait_for(lambda: pipeline.questions)
    assert http.delete(f"/api/chats/{chat['id']}").status_code == 204
    assert pipeline.num_closed == 1


def test_feedback_is_kept(http, chat):
    run = ask(http, chat)
    list(follow(http, run["run_id"]))
    url = f"/api/messages/{run['answer']['id']}/feedback"
    assert http.post(url, json={"rating": -1, "comment": "wrong"}).json()["feedback"] == -1
    assert http.post(url, json={"rating": 7}).status_code == 422
    assert http.get(f"/api/chats/{chat['id']}").json()["messages"][-1]["feedback"] == -1


def test_unknown_runs_and_chats_are_not_found(http):
    assert http.get("/api/runs/nope/events").status_code == 404
    assert http.delete("/api/runs/nope").status_code == 404
    assert http.post("/api/chats/nope/messages", json={"text": "x"}).status_code == 404


def test_stream_says_that_it_is_alive_while_nothing_happens(http, chat, pipeline, monkeypatch):
    monkeypatch.setattr("app.api.sse.HEARTBEAT_S", 0.05)
    pipeline.gate = threading.Event()
    run = ask(http, chat)
    with http.stream("GET", f"/api/runs/{run['run_id']}/events") as reply:
        assert next(line for line in reply.iter_lines() if line.startswith(":"))
    pipeline.gate.set()


def test_library_stream_tells_changes_and_removals(http):
    names = []
    with http.stream("GET", "/api/documents/events") as reply:
        lines = reply.iter_lines()
        upload = http.post("/api/documents", files=[("files", ("a.md", b"x"))]).json()
        (document,) = upload["accepted"]
        events = events_of(lines)
        _, name, data = next(events)
        names.append((name, data["id"]))
        http.delete(f"/api/documents/{document['id']}")
        _, name, data = next(events)
        names.append((name, data["id"]))
    assert names == [("document", document["id"]), ("removed", document["id"])]
