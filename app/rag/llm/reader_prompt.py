"""What the built-in reader is asked: one form for training and for answering.

The question comes first, so that each sentence is read with it in mind. Sentences stand on lines
of their own, as they will be quoted.
"""

from collections.abc import Mapping, Sequence


def reader_prompt(question: str, sources: Mapping[int, Sequence[str]]) -> str:
    """The user's message: the question, then the sentences of each source under its number."""
    lines = [" ".join(question.split())]
    for number, sentences in sources.items():
        lines += [f"[{number}]", *sentences]
    return "\n".join(lines)
