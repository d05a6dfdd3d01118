"""Which tokens may come next: by a JSON schema, regex, choice or grammar, and without bad words.

For quotes see `quotes.py`; for all else llguidance does the parsing. No torch here: a mask is
bytes, one bit for each token.
"""

import json
import threading
from collections import OrderedDict
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from llguidance import LLMatcher, LLParserLimits, LLTokenizer, grammar_from

from app.engine.errors import InvalidRequest
from app.engine.quotes import QuoteCompiler, QuoteGrammar, QuoteMask, num_common
from app.engine.sampling_params import QuoteOnlyParams, StructuredOutputsParams

# What a stranger's grammar may cost. The library's own limits bound compiling to some 0.1 s and
# a step to some 20 ms; its answer to more is an error, not a stall.
MAX_GRAMMAR_CHARS = 256_000
MAX_CACHED_GRAMMARS = 128
LIMITS = LLParserLimits(
    initial_lexer_fuel=1_000_000, step_lexer_fuel=200_000, step_max_items=50_000
)


class GrammarMask:
    """One sequence's place in its grammar.

    The place follows the tokens: it is moved on or back when a mask is asked for. So forks,
    preemptions and drafts need no care.
    """

    def __init__(self, matcher: LLMatcher, end_mask: bytes) -> None:
        self._matcher = matcher
        self._end_mask = end_mask
        self._consumed: list[int] = []
        self.error: str | None = None

    def after(self, output_token_ids: list[int]) -> bytes:
        """The tokens that may follow these, one bit each from the lowest of the first byte on.

        Only end tokens follow what the grammar does not allow, as a draft may be. When the
        library gives up, `error` says why.
        """
        num_kept = num_common(self._consumed, output_token_ids)
        if num_kept < len(self._consumed):
            self._matcher.rollback(len(self._consumed) - num_kept)
            del self._consumed[num_kept:]
        ahead = output_token_ids[num_kept:]
        num_allowed = self._matcher.try_consume_tokens(ahead) if ahead else 0
        self._consumed += ahead[:num_allowed]
        mask = self._matcher.compute_bitmask()
        self.error = _error_of(self._matcher)
        is_allowed = num_allowed == len(ahead) and self.error is None
        return mask if is_allowed else self._end_mask


class WordBan:
    """One sequence's place in the search for bad words, in its text and not in its tokens."""

    def __init__(self, matcher: LLMatcher, special_token_ids: frozenset[int]) -> None:
        self._matcher = matcher
        self._special_token_ids = special_token_ids
        self._special_mask = _mask_of(special_token_ids)
        self._consumed: list[int] = []
        self._num_before = 0  # of what was consumed: the search began after these
        self.error: str | None = None

    def after(self, output_token_ids: list[int]) -> bytes:
        """The tokens that complete no bad word; special tokens, which have no text, always may."""
        self._go_back(num_common(self._consumed, output_token_ids))
        for token_id in output_token_ids[len(self._consumed) :]:
            self._consumed.append(token_id)
            is_text = token_id not in self._special_token_ids
            # A grammar may have asked for a bad word: then the search begins anew after it.
            if is_text and not self._matcher.try_consume_tokens([token_id]):
                self._begin_anew()
        mask = self._matcher.compute_bitmask()
        self.error = _error_of(self._matcher)
        allowed = int.from_bytes(mask, "little") | self._special_mask
        return allowed.to_bytes(len(mask), "little")

    def _go_back(self, length: int) -> None:
        """Take back what was consumed after so many tokens, or all where the search began later."""
        if length < self._num_before:
            self._consumed.clear()
            self._begin_anew()
        elif length < len(self._consumed):
            taken_back = self._consumed[length:]
            num_texts = sum(token_id not in self._special_token_ids for token_id in taken_back)
            self._matcher.rollback(num_texts)
            del self._consumed[length:]

    def _begin_anew(self) -> None:
        self._matcher.reset()
        self._num_before = len(self._consumed)


class GrammarCompiler:
    """Compiles and keeps the grammars of one tokenizer; safe from several threads.

    `vocab_size` is the model's, or the tokenizer's where that is greater.
    """

    def __init__(self, tokenizer_json: str, eos_token_ids: Iterable[int], vocab_size: int) -> None:
        self._tokenizer_json = tokenizer_json
        self._eos_token_ids = sorted(eos_token_ids)
        self._vocab_size = vocab_size
        self._lock = threading.Lock()
        self._tokenizer: LLTokenizer | None = None
        self._special: frozenset[int] | None = None
        self._compiled: OrderedDict[str, LLMatcher] = OrderedDict()
        self._quotes = QuoteCompiler(tokenizer_json)

    def compile(self, params: StructuredOutputsParams) -> LLMatcher | QuoteGrammar:
        """The grammar at its start, to be copied; raise InvalidRequest where there is none.

        Takes a second for the first grammar, milliseconds for others, nothing for a known one:
        call it away from the engine's thread before the request is added.
        """
        if not self._eos_token_ids:
            raise InvalidRequest("structured_outputs needs an end token, the model names none")
        if params.quote_only is not None:
            return self._quotes.compile(params.quote_only)
        return self._compile_grammar(params)

    def start(self, params: StructuredOutputsParams) -> GrammarMask:
        """A sequence's own place at the grammar's start."""
        return GrammarMask(self._compile_grammar(params).deep_copy(), self._end_mask())

    def quote(self, params: QuoteOnlyParams, max_tokens: int, *, is_greedy: bool) -> QuoteMask:
        """A sequence's own place before its first quote; as `start`, for `quote_only`."""
        return QuoteMask(
            self._quotes.compile(params),
            self._eos_token_ids,
            self._vocab_size,
            max_tokens=max_tokens,
            is_greedy=is_greedy,
        )

    def _compile_grammar(self, params: StructuredOutputsParams) -> LLMatcher:
        source = _source(params)
        if params.thoughts_end is not None:
            source = self._after(params.thoughts_end, source)
        return self._compile(source)

    def compile_ban(self, words: Sequence[str]) -> LLMatcher:
        """The grammar of all texts without these words; for `ban`, as `compile` is for `start`."""
        anything = "/(?s:.*)/"
        return self._compile(
            f"start: TEXT\nTEXT: {anything} & ~({anything} ({_any_of(words)}) {anything})",
            "bad_words",
        )

    def ban(self, words: Sequence[str]) -> WordBan:
        """A sequence's own search for bad words."""
        matcher = self.compile_ban(words).deep_copy()
        return WordBan(matcher, self._special_token_ids())

    def _after(self, tag: str, source: str) -> str:
        """The grammar of any text up to a tag, and then what the source says."""
        tokenizer = self._load_tokenizer()
        token_ids = tokenizer.tokenize_str(tag, parse_special=True)
        is_special = len(token_ids) == 1 and tokenizer.is_special_token(token_ids[0])
        rules = [
            "start: before SPACE @answer",
            r"SPACE: /\s{0,4}/",
            "TEXT: /(?s:.*)/",
            f"before: TEXT <[{token_ids[0]}]>"
            if is_special
            else f"before[lazy]: TEXT {json.dumps(tag)}",
        ]
        is_json = source.lstrip().startswith("{")
        grammars = json.loads(source)["grammars"] if is_json else [{"lark_grammar": source}]
        grammars[0] |= {"name": "answer"}
        wrapped = [{"lark_grammar": "\n".join(rules)}, *grammars]
        return json.dumps({"grammars": wrapped})

    def _compile(self, source: str, name: str = "structured_outputs") -> LLMatcher:
        if len(source) > MAX_GRAMMAR_CHARS:
            raise InvalidRequest(
                f"{name} has {len(source)} characters, the limit is {MAX_GRAMMAR_CHARS}"
            )
        with self._lock:
            if source in self._compiled:
                self._compiled.move_to_end(source)
                return self._compiled[source]
        # Outside the lock: known grammars do not wait for a new one.
        matcher = LLMatcher(self._load_tokenizer(), source, log_level=0, limits=LIMITS)
        if matcher.is_error():
            raise InvalidRequest(f"{name}: {_first_line(matcher.get_error())}")
        with self._lock:
            self._compiled[source] = matcher
            if len(self._compiled) > MAX_CACHED_GRAMMARS:
                self._compiled.popitem(last=False)
        return matcher

    def _load_tokenizer(self) -> LLTokenizer:
        with self._lock:
            if self._tokenizer is None:
                self._tokenizer = LLTokenizer(
                    self._tokenizer_json,
                    n_vocab=self._vocab_size,
                    eos_token=self._eos_token_ids or None,
                )
            return self._tokenizer

    def _end_mask(self) -> bytes:
        bits = _mask_of(self._eos_token_ids)
        return bits.to_bytes(-(-self._vocab_size // 8), "little")

    def _special_token_ids(self) -> frozenset[int]:
        tokenizer = self._load_tokenizer()
        if self._special is None:
            ids = range(tokenizer.vocab_size)
            self._special = frozenset(filter(tokenizer.is_special_token, ids))
        return self._special


def _source(params: StructuredOutputsParams) -> str:
    """The constraint as llguidance writes it."""
    try:
        if params.regex is not None:
            return grammar_from("regex", params.regex)
        if params.choice is not None:
            return grammar_from("lark", f"start: {_any_of(params.choice)}")
        if params.grammar is not None:
            return grammar_from("grammar", params.grammar[: MAX_GRAMMAR_CHARS + 1])
        schema = params.json if params.json is not None else {"type": "object"}
        return _json_source(schema, params)
    except (ValueError, TypeError, RecursionError) as error:
        raise InvalidRequest(f"structured_outputs: {_first_line(str(error))}") from error


def _any_of(texts: Sequence[str]) -> str:
    """One of some texts, in Lark, which reads strings as JSON writes them in ASCII."""
    return " | ".join(map(json.dumps, texts))


def _json_source(schema: str | Mapping[str, Any], params: StructuredOutputsParams) -> str:
    text = schema if isinstance(schema, str) else json.dumps(schema, ensure_ascii=False)
    return LLMatcher.grammar_from_json_schema(
        text,
        overrides={
            "whitespace_flexible": not params.disable_any_whitespace,
            "whitespace_pattern": params.whitespace_pattern,
        },
    )


def _mask_of(token_ids: Collection[int]) -> int:
    """One bit for each token."""
    mask = bytearray(max(token_ids, default=0) // 8 + 1)
    for token_id in token_ids:
        mask[token_id // 8] |= 1 << token_id % 8
    return int.from_bytes(mask, "little")


def _error_of(matcher: LLMatcher) -> str | None:
    if not matcher.is_error():
        return None
    return f"the grammar is too costly: {_first_line(matcher.get_error())}"


def _first_line(message: str) -> str:
    return message.strip().partition("\n")[0]
