"""Attention over the block table, and what a step hands to every layer."""

from dataclasses import dataclass

from torch import Tensor

from app.engine.kernels.dispatch import Kernels
from app.engine.kernels.metadata import AttentionMetadata, AttentionSpec, KVCache
from app.engine.layers.lora import LoraRows


@dataclass(frozen=True, slots=True)
class ForwardContext:
    """What all layers of a step share beside the rows themselves."""

    kv_cache: KVCache
    attention: AttentionMetadata
    lora: LoraRows | None = None  # None: no row has an adapter


@dataclass(frozen=True, slots=True)
class PagedAttention:
    """The attention of layer `layer`."""

    layer: int
    spec: AttentionSpec
    kernels: Kernels

    def __call__(
        self, query: Tensor, key: Tensor, value: Tensor, context: ForwardContext
    ) -> Tensor:
        """query: [T, H, D]; key, value: [T, K, D]; returns [T, H * D]."""
        cache, metadata = context.kv_cache, context.attention
        self.kernels.store_kv(key, value, cache, self.layer, metadata.slots)
        attended = self.kernels.paged_attention(query, cache, self.layer, metadata, self.spec)
        return attended.flatten(1)
