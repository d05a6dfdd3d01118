"""What a language model reads: system rules, documents, earlier turns, question.

One layout for every question (rules | documents | turns | question), so that prompts which share
documents or a conversation share a prefix, and with it the cached keys and values. Text from
documents and users can neither forge the marks of a chat template nor a source's number.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from jinja2 import Environment, PackageLoader, StrictUndefined, Template

from app.domain import Language, Message, Source
from app.errors import TooLarge
from app.rag.replies import REFUSAL
from app.rag.text import MARKER

# Of what the rules and the question leave, turns before may take this share.
HISTORY_SHARE = 0.25
# A chat template adds a few tokens to each message.
TOKENS_PER_MESSAGE = 8
MIN_DOCUMENT_TOKENS = 32
# What a follow-up question is rewritten from.
MAX_TURNS_REWRITTEN = 4
MAX_TURN_CHARACTERS = 500

CONTROL_MARK = re.compile(
    r"<(?=\||｜|/?(?:s|bos|eos|pad|unk|start_of_turn|end_of_turn|think|tool_call)>|<SYS>>|</SYS>>)"
    r"|\[(?=/?INST\])"
)
CITED_MARK = re.compile(r"[ \t]*\[\d{1,3}\]")
SPACE = re.compile(r"[ \t]+")

CountTokens = Callable[[str], int]


@dataclass(frozen=True, slots=True)
class Prompt:
    """The rendered messages, and the sources that found room in them."""

    messages: tuple[Message, ...]
    sources: tuple[Source, ...]
    num_tokens: int


@dataclass(frozen=True, slots=True)
class PromptDocument:
    """A source as the template shows it."""

    number: int
    heading: str
    text: str


def build_prompt(
    question: str,
    sources: Sequence[Source],
    *,
    history: Sequence[Message],
    language: Language,
    max_tokens: int,
    count_tokens: CountTokens,
) -> Prompt:
    """Fit rules, documents, turns and question into `max_tokens`.

    Turns before are left out from the oldest on, documents from the last on; of the first
    document the end is cut where it is too long. Raises TooLarge where not even that fits.
    """
    layout = _Layout(language, count_tokens, _instructions(history))
    last = Message("user", layout.question(question))
    room = max_tokens - layout.cost(layout.system(())) - layout.cost(last)
    turns = _fitting_turns(history, int(room * HISTORY_SHARE), layout)
    room -= sum(map(layout.cost, turns))
    documents = _fitting_documents(sources, room, layout)
    if sources and not documents:
        raise TooLarge(
            f"the question leaves {max(0, room)} of {max_tokens} prompt tokens for documents, "
            f"at least {MIN_DOCUMENT_TOKENS} are needed: ask a shorter question"
        )
    messages = (layout.system(documents), *turns, last)
    kept = {document.number for document in documents}
    return Prompt(
        messages=messages,
        sources=tuple(source for source in sources if source.number in kept),
        num_tokens=sum(map(layout.cost, messages)),
    )


def build_rewrite_prompt(
    question: str, history: Sequence[Message], language: Language
) -> tuple[Message, ...]:
    """Ask for the question as it would be without the turns before it, the last few of them.

    Each turn is one line, its beginning: that says what it is about.
    """
    turns = [
        Message(turn.role, _on_one_line(CITED_MARK.sub("", turn.content))[:MAX_TURN_CHARACTERS])
        for turn in history
        if turn.role != "system"
    ][-MAX_TURNS_REWRITTEN:]
    text = _template(f"rewrite.{language}.j2").render(turns=turns, question=_on_one_line(question))
    rules, _, conversation = text.partition("=====\n")
    return Message("system", rules.strip()), Message("user", conversation.strip())


def _on_one_line(text: str) -> str:
    """So that no text can look like another turn."""
    return " ".join(defused(text).split())


class _Layout:
    """Renders the parts of a prompt in a language, and counts them."""

    def __init__(self, language: Language, count_tokens: CountTokens, instructions: str) -> None:
        self._language = language
        self._instructions = instructions
        self.count_tokens = count_tokens

    def system(self, documents: Sequence[PromptDocument]) -> Message:
        template = _template(f"system.{self._language}.j2")
        refusal = REFUSAL[self._language]
        text = template.render(
            refusal=refusal, instructions=self._instructions, documents=documents
        )
        return Message("system", text.strip())

    def question(self, question: str) -> str:
        template = _template(f"question.{self._language}.j2")
        return template.render(question=defused(question).strip()).strip()

    def cost(self, message: Message) -> int:
        return self.count_tokens(message.content) + TOKENS_PER_MESSAGE

    def document_cost(self, document: PromptDocument) -> int:
        text = f"\n\n[{document.number}] {document.heading}\n{document.text}\n"
        return self.count_tokens(text) + 1


def _instructions(history: Sequence[Message]) -> str:
    """What the client says in system messages: it stands after our rules, before the documents."""
    return "\n\n".join(defused(m.content).strip() for m in history if m.role == "system")


def _fitting_turns(history: Sequence[Message], room: int, layout: _Layout) -> list[Message]:
    """The newest turns that fit, without the markers of the sources they had."""
    turns: list[Message] = []
    for message in reversed([turn for turn in history if turn.role != "system"]):
        content = defused(message.content)
        if message.role == "assistant":
            content = CITED_MARK.sub("", content)
        turn = Message(message.role, content)
        room -= layout.cost(turn)
        if room < 0:
            break
        turns.insert(0, turn)
    while turns and turns[0].role != "user":
        turns.pop(0)
    return turns


def _fitting_documents(
    sources: Sequence[Source], room: int, layout: _Layout
) -> list[PromptDocument]:
    documents: list[PromptDocument] = []
    for source in sources:
        document = _document(source)
        cost = layout.document_cost(document)
        if cost > room and not documents:
            document = _cut(document, room, layout)
            return [document] if document.text else []
        if cost > room:
            break
        documents.append(document)
        room -= cost
    return documents


def _document(source: Source) -> PromptDocument:
    hit = source.hit
    path = [hit.document_title or hit.document_name, *hit.chunk.span.heading_path]
    heading = " › ".join(dict.fromkeys(SPACE.sub(" ", part).strip() for part in path if part))
    return PromptDocument(
        number=source.number,
        heading=_without_marks(heading),
        text=_without_marks(hit.chunk.span.text.strip()),
    )


def _cut(document: PromptDocument, room: int, layout: _Layout) -> PromptDocument:
    """Shorten a document until it fits; its text is empty where nothing of use would be left."""
    text = document.text if room >= MIN_DOCUMENT_TOKENS else ""
    cut = PromptDocument(document.number, document.heading[:80], text)
    while cut.text and layout.document_cost(cut) > room:
        cut = replace(cut, text=cut.text[: len(cut.text) * 3 // 4])
    return cut


def _without_marks(text: str) -> str:
    """Write a document's own `[1]` as `(1)`, so that no model takes it for a source's number."""
    return MARKER.sub(r"(\1)", defused(text))


def defused(text: str) -> str:
    """Break what a chat template or tokenizer would take for a control token."""
    return CONTROL_MARK.sub(lambda match: f"{match.group()} ", text)


@lru_cache
def _template(name: str) -> Template:
    return _environment().get_template(name)


@lru_cache
def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("app.rag"),
        undefined=StrictUndefined,
        autoescape=False,  # plain text, not HTML
        trim_blocks=True,
        lstrip_blocks=True,
    )
