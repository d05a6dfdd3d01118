"""Which block of the KV cache holds what: tables, reference counts, sharing and eviction.

No torch and no scheduling policy here. A block is free (in the LRU list, perhaps still findable
by its content) or held by one or more block tables. A preempted sequence may keep its blocks in
the host pool instead. The life of a block is drawn in docs/engine.md.
"""

from array import array
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from hashlib import blake2b

from app.engine.sequence import BlockContent, Sequence

HashFunction = Callable[[bytes], bytes]

LEFT_ON_DEVICE = -1  # in a host table: the block was not copied, others hold it and it is named


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
class BlockMoves:
    """What the runner must do before it computes, as `ScheduledBatch` has it."""

    copies: tuple[tuple[int, int], ...]
    swap_outs: tuple[tuple[int, int], ...]
    swap_ins: tuple[tuple[int, int], ...]


class HostBlocks:
    """Which blocks of the host pool are free.

    A step does its swaps out before its swaps in, so a host block that is read in a step is not
    written in the same step: it is free again only after `end_step`.
    """

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        self._free = list(reversed(range(num_blocks)))
        self._being_read: list[int] = []

    @property
    def num_free(self) -> int:
        """Blocks that can be written in this step."""
        return len(self._free)

    def take(self) -> int:
        """A block to write to; the caller checked that there is one."""
        return self._free.pop()

    def give_back(self, block_ids: Iterable[int]) -> None:
        """Blocks that nobody needs any more, once the step has read them."""
        self._being_read += block_ids

    def end_step(self) -> None:
        """The step's moves are decided: what it reads may be written by later ones."""
        self._free += self._being_read
        self._being_read.clear()

    def check_integrity(self, held: list[int]) -> None:
        """Assert that each block is free or held, and just once."""
        everywhere = sorted([*self._free, *self._being_read, *held])
        assert everywhere == list(range(self.num_blocks)), "a host block is lost or held twice"


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
        num_host_blocks: int = 0,
        enable_prefix_caching: bool = True,
        hash_function: HashFunction = hash_128,
    ) -> None:
        self.block_size = block_size
        self.num_blocks = num_blocks
        self._host = HostBlocks(num_host_blocks)
        self._enable_prefix_caching = enable_prefix_caching
        self._hash = hash_function
        self._blocks = [Block(block_id) for block_id in range(num_blocks)]
        # Least recently used first; blocks without known content go to the front.
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(range(num_blocks))
        self._cached: dict[bytes, Block] = {}
        self._copies: list[tuple[int, int]] = []
        self._swap_outs: list[tuple[int, int]] = []
        self._swap_ins: list[tuple[int, int]] = []
        self._num_queried_tokens = 0
        self._num_hit_tokens = 0

    @property
    def num_free_blocks(self) -> int:
        """Blocks that no table holds."""
        return len(self._free)

    @property
    def num_host_blocks(self) -> int:
        """Blocks of the host pool."""
        return self._host.num_blocks

    @property
    def num_free_host_blocks(self) -> int:
        """Blocks of the host pool that a swap out can take now."""
        return self._host.num_free

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
        if not self._enable_prefix_caching or sequence.needs_every_row:
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

    def num_writable_tokens(self, sequence: Sequence) -> int:
        """Up to where the sequence can grow with the blocks that are free now."""
        return (len(sequence.block_table) + len(self._free)) * self.block_size

    def num_blocks_to_admit(self, sequence: Sequence, prefix: list[int], num_tokens: int) -> int:
        """Free blocks that a waiting sequence takes: new ones, and revived cached ones."""
        num_revived = sum(self._blocks[block_id].ref_count == 0 for block_id in prefix)
        return self.blocks_for(num_tokens) - len(prefix) + num_revived

    def admit(self, sequence: Sequence, prefix: list[int]) -> None:
        """Start a waiting sequence on the blocks that `find_prefix` gave.

        What the device no longer has comes back from the host, up to the first block that is
        in neither place; the host blocks are given back.
        """
        assert not sequence.block_table
        assert sequence.num_computed_tokens == 0
        for block_id in prefix:
            self._hold(block_id)
        sequence.block_table = list(prefix)
        sequence.num_computed_tokens = len(prefix) * self.block_size
        sequence.num_committed_blocks = len(prefix)
        self._swap_in(sequence)
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
        child.num_committed_blocks = parent.num_committed_blocks
        child.num_cached_tokens = parent.num_cached_tokens

    def commit(self, sequence: Sequence) -> None:
        """Make the blocks findable that are full and computed."""
        if not self._enable_prefix_caching:
            return
        first = sequence.num_committed_blocks
        sequence.num_committed_blocks = sequence.num_computed_tokens // self.block_size
        for index in range(first, sequence.num_committed_blocks):
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

    def num_blocks_to_swap(self, sequence: Sequence) -> int:
        """Host blocks that `swap_out` would take."""
        return sum(not self._stays(block_id) for block_id in self._blocks_to_keep(sequence))

    def trim(self, sequence: Sequence) -> None:
        """Take back the blocks that only a rejected draft needed."""
        while len(sequence.block_table) > self.blocks_for(sequence.num_tokens):
            self._release(sequence.block_table.pop())

    def num_tokens_to_lose(self, sequence: Sequence) -> int:
        """Tokens to compute again after `free`, if only what others hold is found again."""
        num_kept = sum(self._stays(block_id) for block_id in self._blocks_to_keep(sequence))
        return max(sequence.num_computed_tokens - num_kept * self.block_size, 0)

    def swap_out(self, sequence: Sequence) -> None:
        """Take all blocks back and keep what they hold in the host pool; the caller checked room.

        Named blocks that others hold are not copied: they are most likely found again, else
        their tokens are computed again. The last token is always left to compute.
        """
        for block_id in self._blocks_to_keep(sequence):
            host_block = LEFT_ON_DEVICE
            if not self._stays(block_id):
                host_block = self._host.take()
                self._swap_outs.append((block_id, host_block))
            sequence.host_table.append(host_block)
        sequence.num_host_tokens = _num_tokens_to_keep(sequence)
        self._release_table(sequence)

    def free(self, sequence: Sequence) -> None:
        """Take all blocks back, host blocks too; its end is evicted before its beginning."""
        self._release_table(sequence)
        self._release_host_table(sequence)

    def take_moves(self) -> BlockMoves:
        """What the step that was just decided must move before it writes."""
        moves = BlockMoves(tuple(self._copies), tuple(self._swap_outs), tuple(self._swap_ins))
        for pending in (self._copies, self._swap_outs, self._swap_ins):
            pending.clear()
        self._host.end_step()
        return moves

    def num_empty_slots(self, sequences: Iterable[Sequence]) -> int:
        """Slots of held blocks without a computed token: what paging wastes, shared blocks once."""
        num_filled: dict[int, int] = {}
        for sequence in sequences:
            first = sequence.num_computed_tokens // self.block_size
            for index, block_id in enumerate(sequence.block_table[first:], first):
                filled = max(sequence.num_computed_tokens - index * self.block_size, 0)
                num_filled[block_id] = max(num_filled.get(block_id, 0), filled)
        return sum(self.block_size - filled for filled in num_filled.values())

    def reset_prefix_cache(self) -> None:
        """Forget all contents; blocks in use stay in use."""
        for block in self._cached.values():
            block.content = None
        self._cached.clear()

    def check_integrity(
        self, sequences: Iterable[Sequence], waiting: Iterable[Sequence] = ()
    ) -> None:
        """Assert the invariants against the sequences that hold blocks, and those that wait.

        The numbers are those of the list in docs/engine.md.
        """
        self._check_host_pool(waiting)
        held: Counter[int] = Counter()
        for sequence in sequences:
            assert not sequence.host_table, "both on the device and swapped out"  # 6
            held.update(sequence.block_table)
            assert len(set(sequence.block_table)) == len(sequence.block_table), "block twice"
            capacity = len(sequence.block_table) * self.block_size
            assert sequence.num_computed_tokens <= min(sequence.num_tokens, capacity)  # 4
            assert capacity < sequence.num_tokens + self.block_size, "a block without a token"  # 6
            self._check_contents(sequence)
        for block in self._blocks:
            assert block.ref_count == held[block.id], f"block {block.id} is miscounted"  # 1
            assert (block.id in self._free) == (block.ref_count == 0)  # 1
            if block.content is not None:
                assert self._cached.get(block.content.hash) is block  # 2
                assert len(block.content.tokens) == self.block_size  # 2
        named = sum(block.content is not None for block in self._blocks)
        assert named == len(self._cached), "a hash names a block that does not know it"
        assert len(self._free) + sum(b.ref_count > 0 for b in self._blocks) == self.num_blocks  # 1

    def _check_host_pool(self, waiting: Iterable[Sequence]) -> None:
        moves = (*self._copies, *self._swap_outs, *self._swap_ins)
        assert not moves, "moves in flight between steps"  # 1
        held: list[int] = []
        for sequence in waiting:
            assert not sequence.block_table, "waits and holds blocks"  # 6
            assert len(sequence.host_table) == self.blocks_for(sequence.num_host_tokens)
            assert sequence.num_host_tokens < sequence.num_tokens  # 4
            held += [block for block in sequence.host_table if block != LEFT_ON_DEVICE]
        self._host.check_integrity(held)  # 1, 6

    def _check_contents(self, sequence: Sequence) -> None:
        size = self.block_size
        for index, block_id in enumerate(sequence.block_table):
            content = self._blocks[block_id].content
            if content is None:
                continue
            end = (index + 1) * size
            assert end <= sequence.num_computed_tokens, "a named block is not full"  # 2
            assert content.tokens == tuple(sequence.token_ids[end - size : end])  # 2
            assert content.salt == sequence.salt  # 2

    def _blocks_to_keep(self, sequence: Sequence) -> list[int]:
        return sequence.block_table[: self.blocks_for(_num_tokens_to_keep(sequence))]

    def _stays(self, block_id: int) -> bool:
        block = self._blocks[block_id]
        return block.content is not None and block.ref_count > 1

    def _swap_in(self, sequence: Sequence) -> None:
        for host_block in sequence.host_table[len(sequence.block_table) :]:
            if host_block == LEFT_ON_DEVICE:
                break
            block_id = self._take()
            self._swap_ins.append((host_block, block_id))
            sequence.block_table.append(block_id)
            num_tokens = len(sequence.block_table) * self.block_size
            sequence.num_computed_tokens = min(num_tokens, sequence.num_host_tokens)
        self._release_host_table(sequence)

    def _release_table(self, sequence: Sequence) -> None:
        for block_id in reversed(sequence.block_table):
            self._release(block_id)
        sequence.block_table = []
        sequence.num_computed_tokens = 0
        sequence.num_committed_blocks = 0

    def _release_host_table(self, sequence: Sequence) -> None:
        self._host.give_back(block for block in sequence.host_table if block != LEFT_ON_DEVICE)
        sequence.host_table = []
        sequence.num_host_tokens = 0

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


def _num_tokens_to_keep(sequence: Sequence) -> int:
    """All that is computed but the last token, whose logits are needed once more."""
    return min(sequence.num_computed_tokens, sequence.num_tokens - 1)


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
