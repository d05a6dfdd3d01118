"""Decoders of the Llama kind: Llama, Mistral, Qwen2 and Qwen3, told apart by config flags.

Dimensions: T rows of the step, H query heads, K key/value heads, D head size, E hidden size.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from app.engine.config import ModelConfig
from app.engine.layers.attention import AttentionMetadata, PagedAttention
from app.engine.layers.linear import Linear, make_linear
from app.engine.layers.norm import RMSNorm
from app.engine.layers.rotary import RotaryEmbedding, rotate
from app.engine.models.rope import rotary_frequencies

ReadWeight = Callable[[str], Tensor]


@dataclass(frozen=True, slots=True)
class DecoderLayer:
    """Attention and gated MLP, each after a norm and beside a residual."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    input_norm: RMSNorm
    qkv: Linear
    q_norm: RMSNorm | None
    k_norm: RMSNorm | None
    attention: PagedAttention
    output: Linear
    mlp_norm: RMSNorm
    gate_up: Linear
    down: Linear

    def __call__(
        self,
        hidden: Tensor,
        rotary: tuple[Tensor, Tensor],
        kv_cache: Tensor,
        metadata: AttentionMetadata,
    ) -> Tensor:
        """hidden: [T, E] -> [T, E]."""
        query, key, value = self._project(self.input_norm(hidden), rotary)
        attended = self.attention(query, key, value, kv_cache, metadata)
        hidden = hidden + self.output(attended)
        gate, up = self.gate_up(self.mlp_norm(hidden)).chunk(2, dim=-1)
        return hidden + self.down(functional.silu(gate) * up)

    def _project(self, x: Tensor, rotary: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        heads = self.qkv(x).view(x.shape[0], -1, self.head_dim)  # [T, H + 2 K, D]
        sizes = [self.num_heads, self.num_kv_heads, self.num_kv_heads]
        query, key, value = torch.split(heads, sizes, dim=1)
        if self.q_norm is not None and self.k_norm is not None:
            query, key = self.q_norm(query), self.k_norm(key)
        return rotate(query, *rotary), rotate(key, *rotary), value


class LlamaModel:
    """Embedding, layers, final norm and head."""

    def __init__(
        self, config: ModelConfig, read_weight: ReadWeight, max_model_len: int, device: torch.device
    ) -> None:
        self.config = config
        frequencies, factor = rotary_frequencies(config, max_model_len)
        self._rotary = RotaryEmbedding(frequencies.to(device), factor, max_model_len)
        self._embedding = read_weight("model.embed_tokens.weight")
        self._layers = [_build_layer(config, read_weight, i) for i in range(config.num_layers)]
        self._norm = RMSNorm(read_weight("model.norm.weight"), config.rms_norm_eps)
        tied = config.tie_word_embeddings
        self._head = make_linear([self._embedding if tied else read_weight("lm_head.weight")])

    def forward(
        self, token_ids: Tensor, positions: Tensor, kv_cache: Tensor, metadata: AttentionMetadata
    ) -> Tensor:
        """Compute a step and fill its slots; returns hidden states [T, E].

        token_ids, positions: [T] int64; kv_cache: [N, num_layers, 2, K, S, D].
        """
        hidden = functional.embedding(token_ids, self._embedding)
        rotary = self._rotary.at(positions, hidden.dtype)
        for layer in self._layers:
            hidden = layer(hidden, rotary, kv_cache, metadata)
        return hidden

    def logits(self, hidden: Tensor) -> Tensor:
        """hidden: [rows, E] -> [rows, vocabulary], float32."""
        return self._head(self._norm(hidden)).float()


def _build_layer(config: ModelConfig, read_weight: ReadWeight, index: int) -> DecoderLayer:
    prefix = f"model.layers.{index}."

    def linear(*names: str, has_bias: bool) -> Linear:
        weights = [read_weight(f"{prefix}{name}.weight") for name in names]
        biases = [read_weight(f"{prefix}{name}.bias") for name in names] if has_bias else None
        return make_linear(weights, biases)

    def norm(name: str) -> RMSNorm:
        return RMSNorm(read_weight(f"{prefix}{name}.weight"), config.rms_norm_eps)

    qkv = [f"self_attn.{part}_proj" for part in "qkv"]
    gate_up = ["mlp.gate_proj", "mlp.up_proj"]
    window = config.sliding_window if index >= config.first_sliding_layer else None
    return DecoderLayer(
        num_heads=config.num_heads,
        num_kv_heads=config.num_kv_heads,
        head_dim=config.head_dim,
        input_norm=norm("input_layernorm"),
        qkv=linear(*qkv, has_bias=config.has_qkv_bias),
        q_norm=norm("self_attn.q_norm") if config.has_qk_norm else None,
        k_norm=norm("self_attn.k_norm") if config.has_qk_norm else None,
        attention=PagedAttention(index, config.head_dim**-0.5, window),
        output=linear("self_attn.o_proj", has_bias=config.has_output_bias),
        mlp_norm=norm("post_attention_layernorm"),
        gate_up=linear(*gate_up, has_bias=config.has_mlp_bias),
        down=linear("mlp.down_proj", has_bias=config.has_mlp_bias),
    )
