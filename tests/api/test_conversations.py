from datetime import UTC, datetime

from app.api.conversations import history_of, title_of
from app.domain import ChatMessage, Message


def message(role, content, state="done"):
    return ChatMessage("id", "chat", role, content, state, datetime.now(UTC))


def test_a_question_whose_answer_never_came_is_left_out_of_the_history():
    messages = [
        message("user", "first?"),
        message("assistant", "", "failed"),
        message("user", "second?"),
        message("assistant", "yes", "done"),
    ]
    assert history_of(messages) == (Message("user", "second?"), Message("assistant", "yes"))


def test_a_title_is_the_first_line_with_words():
    assert title_of("\n \n  How long?\nmore") == "How long?"
    assert title_of("\x1c") == ""
