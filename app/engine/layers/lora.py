"""Low-rank adapters of a linear map, several in one step (Hu et al., 2021).

Dimensions: T rows, S slots for adapters, R the largest rank, n slots that a step looks at.
"""

from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True, slots=True)
class LoraRows:
    """Which adapter each row of a step takes: slots `first` up to `last` hold them all.

    others: [T, n, 1] bool, False only where the row takes the slot's adapter.
    """

    first: int
    last: int
    others: Tensor


@dataclass(frozen=True, slots=True)
class LoraPart:
    """All slots' matrices for one module, which fills the columns from `start` of a fused map.

    a: [S, R, in]; b: [S, R, out], scaling included; zero where a slot is empty, the adapter
    leaves the module alone, or its rank is smaller. `filled` are the slots that are not empty.
    """

    start: int
    a: Tensor
    b: Tensor
    filled: set[int] = field(default_factory=set)

    def add(self, x: Tensor, rows: LoraRows, output: Tensor) -> None:
        """Add each row's x A^T B^T to its columns; x: [T, in]; output: [T, columns], changed.

        All slots are multiplied together and the others' products set to zero, which costs
        little as long as n * R is small beside the map itself.
        """
        if self.filled.isdisjoint(range(rows.first, rows.last)):
            return
        slots = slice(rows.first, rows.last)
        narrow = x @ self.a[slots].flatten(0, 1).T  # [T, n * R]
        narrow = narrow.view(len(x), rows.last - rows.first, -1).masked_fill(rows.others, 0)
        columns = output[:, self.start : self.start + self.b.shape[-1]]
        columns += narrow.flatten(1) @ self.b[slots].flatten(0, 1)

    def write(self, slot: int, a: Tensor, b: Tensor) -> None:
        """Put an adapter's matrices into an empty slot; a: [r, in]; b: [r, out], scaled."""
        self.a[slot, : a.shape[0]] = a
        self.b[slot, : b.shape[0]] = b
        self.filled.add(slot)

    def clear(self, slot: int) -> None:
        """Empty a slot."""
        if slot in self.filled:
            self.a[slot] = 0
            self.b[slot] = 0
            self.filled.remove(slot)
