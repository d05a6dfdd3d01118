"""Which block of the KV cache holds what: tables, reference counts, sharing and eviction.

No torch and no scheduling policy here. A block is free (in the LRU list, perhaps still findable
by its content) or held by one or more block tables. The life of a block is drawn in
docs/engine.md.
"""

from array import array
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from hashlib import blake2b

from app.engine.sequence import BlockContent, Sequence

HashFunction = Callable[[bytes], bytes]


def hash_128(data: bytes) -> bytes:
    """A 128-bit digest, so that two prefixes never meet by accident or on purpose."""
    return blake2b(data, digest_size=16).digest()


@dataclass(slots=True, eq=False)
class Block:
    """A physical block: how many tables hold it, and what it is known to contain."""

    id: int
    ref_count: int = 0
    content: BlockContent | None = None


@dataclass(frozen=True, slots=True)
class PrefixCacheStats:
    """Counters since the start, in tokens."""

    num_queried_tokens: int
    num_hit_tokens: int


class KVCacheManager:
    """Hands out blocks of `block_size` tokens and shares those with equal prefixes."""

    def __init__(
        self,
        num_blocks: int,
        block_size: int,
        *,
        enable_prefix_caching: bool = True,
        hash_function: HashFunction = hash_128,
    ) -> None:
        self.block_size = block_size
        self.num_blocks = num_blocks
        self._enable_prefix_caching = enable_prefix_caching
        self._hash = hash_function
        self._blocks = [Block(block_id) for block_id in range(num_blocks)]
        # Least recently used first; blocks without known content go to the front.
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(range(num_blocks))
        self._cached: dict[bytes, Block] = {}
        self._copies: list[tuple[int, int]] = []
        self._num_queried_tokens = 0
        self._num_hit_tokens = 0

    @property
    def num_free_blocks(self) -> int:
        """Blocks that no table holds."""
        return len(self._free)

    @property
    def stats(self) -> PrefixCacheStats:
        """How much of the prompts was found in the cache."""
        return PrefixCacheStats(self._num_queried_tokens, self._num_hit_tokens)

    def blocks_for(self, num_tokens: int) -> int:
        """How many blocks hold so many tokens."""
        return -(-num_tokens // self.block_size)

    def find_prefix(self, sequence: Sequence) -> list[int]:
        """The cached blocks that a waiting sequence can start from.

        The last token is always left to compute: its logits are needed, also on a full hit.
        """
        if not self._enable_prefix_caching or sequence.params.prompt_logprobs is not None:
            return []
        found: list[int] = []
        for index in range((sequence.num_tokens - 1) // self.block_size):
            content = self._content(sequence, index)
            block = self._lookup(content)
            if block is None:
                break
            assert block.content is not None
            _adopt(sequence, index, block.content)
            found.append(block.id)
        return found

    def num_missing_blocks(self, sequence: Sequence, num_tokens: int) -> int:
        """Blocks to take from the free list so that `num_tokens` can be written."""
        missing = self.blocks_for(num_tokens) - len(sequence.block_table)
        return max(missing, 0) + self._must_copy(sequence)

    def num_blocks_to_admit(self, sequence: Sequence, prefix: list[int], num_tokens: int) -> int:
        """Free blocks that a waiting sequence takes: new ones, and revived cached ones."""
        num_revived = sum(self._blocks[block_id].ref_count == 0 for block_id in prefix)
        return self.blocks_for(num_tokens) - len(prefix) + num_revived

    def admit(self, sequence: Sequence, prefix: list[int]) -> None:
        """Start a waiting sequence on the blocks that `find_prefix` gave."""
        assert not sequence.block_table
        assert sequence.num_computed_tokens == 0
        for block_id in prefix:
            self._hold(block_id)
        sequence.block_table = list(prefix)
        sequence.num_computed_tokens = len(prefix) * self.block_size
        if sequence.num_preemptions == 0:
            sequence.num_cached_tokens = sequence.num_computed_tokens
            self._num_queried_tokens += sequence.num_tokens
            self._num_hit_tokens += sequence.num_cached_tokens

    def extend(self, sequence: Sequence, num_tokens: int) -> None:
        """Give a sequence the blocks to write up to `num_tokens`; the caller checked the room.

        A shared block that would be written is replaced by a copy (see `take_copies`).
        """
        if self._must_copy(sequence):
            index = sequence.num_computed_tokens // self.block_size
            source = sequence.block_table[index]
            target = self._take()
            self._copies.append((source, target))
            sequence.block_table[index] = target
            self._release(source)
        while len(sequence.block_table) < self.blocks_for(num_tokens):
            sequence.block_table.append(self._take())

    def fork(self, parent: Sequence, child: Sequence) -> None:
        """Let the child hold all of the parent's blocks."""
        assert not child.block_table
        for block_id in parent.block_table:
            self._hold(block_id)
        child.block_table = list(parent.block_table)
        child.contents = list(parent.contents)
        child.num_computed_tokens = parent.num_computed_tokens
        child.num_cached_tokens = parent.num_cached_tokens

    def commit(self, sequence: Sequence, num_computed_before: int) -> None:
        """Make the blocks findable that a step has filled."""
        if not self._enable_prefix_caching:
            return
        first = num_computed_before // self.block_size
        for index in range(first, sequence.num_computed_tokens // self.block_size):
            block = self._blocks[sequence.block_table[index]]
            if block.content is not None:
                continue
            content = self._content(sequence, index)
            known = self._cached.get(content.hash)
            if known is None:
                block.content = content
                self._cached[content.hash] = block
            elif known.content is not None and is_same_content(known.content, content):
                _adopt(sequence, index, known.content)  # computed twice: this one stays unnamed

    def free(self, sequence: Sequence) -> None:
        """Take all blocks back; the end of a sequence is evicted before its beginning."""
        for block_id in reversed(sequence.block_table):
            self._release(block_id)
        sequence.block_table = []
        sequence.num_computed_tokens = 0

    def take_copies(self) -> tuple[tuple[int, int], ...]:
        """The (source, target) copies that the next step must do before it writes."""
        copies = tuple(self._copies)
        self._copies.clear()
        return copies

    def reset_prefix_cache(self) -> None:
        """Forget all contents; blocks in use stay in use."""
        for block in self._cached.values():
            block.content = None
        self._cached.clear()

    def check_integrity(self, sequences: Iterable[Sequence]) -> None:
        """Assert the invariants of the cache against the sequences that hold blocks."""
        held: Counter[int] = Counter()
        for sequence in sequences:
            held.update(sequence.block_table)
            assert len(set(sequence.block_table)) == len(sequence.block_table), "block twice"
            capacity = len(sequence.block_table) * self.block_size
            assert sequence.num_computed_tokens <= min(sequence.num_tokens, capacity)
            self._check_contents(sequence)
        for block in self._blocks:
            assert block.ref_count == held[block.id], f"block {block.id} is miscounted"
            assert (block.id in self._free) == (block.ref_count == 0)
            if block.content is not None:
                assert self._cached.get(block.content.hash) is block
                assert len(block.content.tokens) == self.block_size
        named = sum(block.content is not None for block in self._blocks)
        assert named == len(self._cached), "a hash names a block that does not know it"
        assert len(self._free) + sum(b.ref_count > 0 for b in self._blocks) == self.num_blocks

    def _check_contents(self, sequence: Sequence) -> None:
        size = self.block_size
        for index, block_id in enumerate(sequence.block_table):
            content = self._blocks[block_id].content
            if content is None:
                continue
            end = (index + 1) * size
            assert end <= sequence.num_computed_tokens, "a named block is not full"
            assert content.tokens == tuple(sequence.token_ids[end - size : end])
            assert content.salt == sequence.salt

    def _content(self, sequence: Sequence, index: int) -> BlockContent:
        contents = sequence.contents
        while len(contents) <= index:
            start = len(contents) * self.block_size
            tokens = tuple(sequence.token_ids[start : start + self.block_size])
            parent = contents[-1] if contents else None
            seed = parent.hash if parent else self._hash(sequence.salt.encode())
            digest = self._hash(seed + array("q", tokens).tobytes())
            contents.append(BlockContent(digest, parent, tokens, sequence.salt))
        return contents[index]

    def _lookup(self, content: BlockContent) -> Block | None:
        block = self._cached.get(content.hash)
        if block is None or block.content is None or not is_same_content(block.content, content):
            return None
        return block

    def _must_copy(self, sequence: Sequence) -> bool:
        index = sequence.num_computed_tokens // self.block_size
        table = sequence.block_table
        return index < len(table) and self._blocks[table[index]].ref_count > 1

    def _take(self) -> int:
        block_id, _ = self._free.popitem(last=False)
        block = self._blocks[block_id]
        if block.content is not None:
            del self._cached[block.content.hash]
            block.content = None
        block.ref_count = 1
        return block_id

    def _hold(self, block_id: int) -> None:
        block = self._blocks[block_id]
        if block.ref_count == 0:
            del self._free[block_id]
        block.ref_count += 1

    def _release(self, block_id: int) -> None:
        block = self._blocks[block_id]
        block.ref_count -= 1
        if block.ref_count == 0:
            self._free[block_id] = None
            if block.content is None:
                self._free.move_to_end(block_id, last=False)


def _adopt(sequence: Sequence, index: int, content: BlockContent) -> None:
    sequence.contents[index] = content
    if index + 1 < len(sequence.contents):
        sequence.contents[index + 1].parent = content


def is_same_content(one: BlockContent | None, other: BlockContent | None) -> bool:
    """Whether two contents are equal from the first token on.

    Contents that came out of the cache share their ancestors, so this usually ends after one
    comparison.
    """
    while one is not other:
        if one is None or other is None:
            return False
        if one.tokens != other.tokens or one.salt != other.salt:
            return False
        one, other = one.parent, other.parent
    return True
