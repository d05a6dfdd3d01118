import pytest
from pydantic import TypeAdapter

from app.api.filters import FilterIn, read_filter, read_metadata
from app.domain import Combination, Comparison, SearchScope
from app.errors import InvalidInput

YEAR = {"type": "gte", "key": "year", "value": 2024}


def parse(wanted):
    return read_filter(TypeAdapter(FilterIn).validate_python(wanted))


def nested(depth):
    wanted = YEAR
    for _ in range(depth - 1):
        wanted = {"type": "or", "filters": [wanted]}
    return wanted


def test_filters_are_read_in_openais_form():
    law = {"type": "in", "key": "tag", "value": ["law", "法律"]}
    assert parse({"type": "and", "filters": [YEAR, {"type": "or", "filters": [law]}]}) == (
        Combination(
            "and",
            (
                Comparison("year", "gte", 2024.0),
                Combination("or", (Comparison("tag", "in", ("law", "法律")),)),
            ),
        )
    )
    assert read_filter(None) is None


@pytest.mark.parametrize("value", ["1", 1.0, True])
def test_values_keep_their_types(value):
    read = parse({"type": "eq", "key": "k", "value": value})
    assert (read.value, type(read.value)) == (value, type(value))


@pytest.mark.parametrize(
    ("wanted", "reason"),
    [
        ({"type": "like", "key": "k", "value": "x"}, "'eq', 'ne'"),
        ({"type": "eq", "key": "k", "value": ["x"]}, "eq takes one value"),
        ({"type": "in", "key": "k", "value": "x"}, "in takes a list"),
        ({"type": "in", "key": "k", "value": []}, "at least 1 item"),
        ({"type": "gt", "key": "k", "value": True}, "have no order"),
        ({"type": "eq", "key": "k", "value": None}, "valid"),
        ({"type": "eq", "key": "", "value": 1}, "at least 1 item"),
        ({"type": "eq", "key": "k", "value": 1, "or": 1}, "Extra inputs"),
        ({"type": "and", "filters": []}, "at least 1 item"),
    ],
)
def test_filters_that_say_nothing_are_refused_with_the_reason(client, wanted, reason):
    reply = client.post("/api/search", json={"query": "x", "filters": wanted})
    assert reply.status_code == 422
    assert reason in reply.json()["error"]["message"]


def test_keys_of_folios_own_are_no_metadata():
    assert parse({"type": "eq", "key": "folio.name", "value": "a.pdf"}).key == "folio.name"
    with pytest.raises(InvalidInput, match=r"keys that begin with folio\. are Folio's own"):
        read_metadata('{"folio.name": "a.pdf"}')


def test_filters_have_limits():
    assert parse(nested(5))
    with pytest.raises(InvalidInput, match="deeper than 5 levels"):
        parse(nested(6))
    with pytest.raises(InvalidInput, match="52 comparisons, the limit is 50"):
        parse({"type": "or", "filters": [{"type": "and", "filters": [YEAR] * 26}] * 2})


def test_a_question_in_a_chat_is_asked_with_its_filter(client, pipeline):
    chat = client.post("/api/chats", json={"collection_ids": ["default"]}).json()
    path = f"/api/chats/{chat['id']}/messages"
    assert client.post(path, json={"text": "x", "filters": YEAR}).status_code == 202
    assert pipeline.questions[-1].scope == SearchScope(
        ("default",), Comparison("year", "gte", 2024.0)
    )
