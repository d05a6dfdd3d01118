"""Decoders of the Llama kind, told apart by flags of `ModelConfig` (its `FAMILIES` is the list).

Dimensions: T rows of the step, H query heads, K key/value heads, D head size, E hidden size.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from app.engine.kernels.dispatch import Kernels
from app.engine.kernels.metadata import AttentionSpec, QKNorm
from app.engine.layers.attention import ForwardContext, PagedAttention
from app.engine.layers.embedding import Embedding
from app.engine.layers.linear import Linear
from app.engine.layers.norm import RMSNorm
from app.engine.layers.rotary import RotaryEmbedding
from app.engine.model_config import ModelConfig, Rope
from app.engine.models.mlp import GatedMLP
from app.engine.models.moe import SparseMLP
from app.engine.models.rope import rotary_frequencies


class Weights(Protocol):
    """Where a model's weights come from, whatever form they are kept in."""

    def tensor(self, name: str) -> Tensor: ...
    def linear(self, names: Sequence[str], *, has_bias: bool) -> Linear: ...
    def embedding(self, name: str, *, is_tied: bool) -> Embedding: ...
    def head(self, embedding: Embedding, *, is_tied: bool) -> Linear: ...


@dataclass(frozen=True, slots=True)
class SelfAttention:
    """Projections around the attention over the cache."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    qkv: Linear
    qk_norm: QKNorm | None
    attention: PagedAttention
    output: Linear
    kernels: Kernels

    def __call__(self, x: Tensor, rotary: tuple[Tensor, Tensor], context: ForwardContext) -> Tensor:
        """x: [T, E] -> [T, E]."""
        heads = self.qkv(x, context.lora).view(x.shape[0], -1, self.head_dim)  # [T, H + 2 K, D]
        sizes = [self.num_heads, self.num_kv_heads, self.num_kv_heads]
        query, key, value = torch.split(heads, sizes, dim=1)
        query, key = self.kernels.rotate(query, key, *rotary, self.qk_norm)
        return self.output(self.attention(query, key, value, context), context.lora)


@dataclass(frozen=True, slots=True)
class DecoderLayer:
    """Attention and MLP, each after a norm and beside a residual; Gemma has norms after them too.

    What a layer's MLP adds is handed on beside the hidden states, so that the next norm adds it.
    """

    input_norm: RMSNorm
    attention: SelfAttention
    attention_post_norm: RMSNorm | None
    mlp_norm: RMSNorm
    mlp: GatedMLP | SparseMLP
    mlp_post_norm: RMSNorm | None
    residual_multiplier: float

    def __call__(
        self,
        hidden: Tensor,
        added: Tensor | None,
        rotary: tuple[Tensor, Tensor],
        context: ForwardContext,
    ) -> tuple[Tensor, Tensor]:
        """hidden, added: [T, E] -> the same, their sum being the layer's output."""
        if added is None:
            normed = self.input_norm(hidden)
        else:
            normed, hidden = self.input_norm.add(added, hidden)
        attended = self.attention(normed, rotary, context)
        normed, hidden = self.mlp_norm.add(self._after(attended, self.attention_post_norm), hidden)
        return hidden, self._after(self.mlp(normed, context.lora), self.mlp_post_norm)

    def _after(self, x: Tensor, post_norm: RMSNorm | None) -> Tensor:
        if post_norm is not None:
            x = post_norm(x)
        return x if self.residual_multiplier == 1 else x * self.residual_multiplier


class LlamaModel:
    """Embedding, layers, final norm and head."""

    def __init__(
        self,
        config: ModelConfig,
        weights: Weights,
        max_model_len: int,
        device: torch.device,
        kernels: Kernels,
    ) -> None:
        self.config = config
        build = _Builder(config, weights, kernels)
        self._rotary = _rotary(config.rope, max_model_len, device)
        self._local_rotary = self._rotary
        if config.local_rope is not None:
            self._local_rotary = _rotary(config.local_rope, max_model_len, device)
        is_tied = config.tie_word_embeddings
        self._embedding = weights.embedding("model.embed_tokens", is_tied=is_tied)
        self._layers = [build.layer(index) for index in range(config.num_layers)]
        self._norm = build.norm("model.norm")
        self._head = weights.head(self._embedding, is_tied=is_tied)
        # Rounded to the dtype of the embeddings, as Gemma was trained.
        self._multiplier = torch.tensor(
            config.embedding_multiplier, dtype=self._embedding.dtype, device=device
        )

    def forward(self, token_ids: Tensor, context: ForwardContext) -> Tensor:
        """Compute a step and fill its slots; token_ids: [T] int64; returns hidden states [T, E]."""
        hidden = self._embedding(token_ids)
        if self.config.embedding_multiplier != 1:
            hidden = hidden * self._multiplier
        positions = context.attention.positions
        rotary = self._rotary.at(positions, hidden.dtype)
        local = rotary
        if self._local_rotary is not self._rotary:
            local = self._local_rotary.at(positions, hidden.dtype)
        added = None
        for layer, window in zip(self._layers, self.config.layer_windows, strict=True):
            hidden, added = layer(hidden, added, rotary if window is None else local, context)
        return hidden if added is None else hidden + added

    def logits(self, hidden: Tensor) -> Tensor:
        """hidden: [rows, E] -> [rows, vocabulary], float32."""
        logits = self._head(self._norm(hidden)).float()
        if self.config.logit_divisor != 1:
            logits = logits / self.config.logit_divisor
        softcap = self.config.logit_softcap
        return logits if softcap is None else softcap * torch.tanh(logits / softcap)

    def final_states(self, hidden: Tensor) -> Tensor:
        """What embeddings are pooled from, the states after the last norm: [rows, E], float32."""
        return self._norm(hidden).float()


@dataclass(frozen=True, slots=True)
class _Builder:
    """Puts layers together from a checkpoint's weights."""

    config: ModelConfig
    weights: Weights
    kernels: Kernels

    def layer(self, index: int) -> DecoderLayer:
        config, prefix = self.config, f"model.layers.{index}"
        # Where there are norms after attention and MLP, the one before the MLP has another name.
        has_post, before_mlp = config.has_post_norms, "post_attention_layernorm"
        return DecoderLayer(
            input_norm=self.norm(f"{prefix}.input_layernorm"),
            attention=self._attention(index, f"{prefix}.self_attn"),
            attention_post_norm=self.norm(f"{prefix}.{before_mlp}") if has_post else None,
            mlp_norm=self.norm(
                f"{prefix}.{'pre_feedforward_layernorm' if has_post else before_mlp}"
            ),
            mlp=self._mlp(index, f"{prefix}.mlp"),
            mlp_post_norm=self.norm(f"{prefix}.post_feedforward_layernorm") if has_post else None,
            residual_multiplier=config.residual_multiplier,
        )

    def norm(self, name: str) -> RMSNorm:
        return RMSNorm(self._norm_weight(name), self.config.rms_norm_eps, self.kernels)

    def _norm_weight(self, name: str) -> Tensor:
        weight = self.weights.tensor(f"{name}.weight")
        offset = self.config.norm_weight_offset
        # Gemma multiplies by 1 + weight in float32 and rounds last: kernels go by the dtype.
        return weight.float() + offset if offset else weight

    def _attention(self, index: int, prefix: str) -> SelfAttention:
        config = self.config
        spec = AttentionSpec(
            config.attention_scale, config.layer_windows[index], config.attention_softcap
        )
        qkv = ["qkv_proj"] if config.has_fused_projections else ["q_proj", "k_proj", "v_proj"]
        return SelfAttention(
            num_heads=config.num_heads,
            num_kv_heads=config.num_kv_heads,
            head_dim=config.head_dim,
            qkv=self._linear(prefix, qkv, config.has_qkv_bias),
            qk_norm=self._qk_norm(prefix) if config.has_qk_norm else None,
            attention=PagedAttention(index, spec, self.kernels),
            output=self._linear(prefix, ["o_proj"], config.has_output_bias),
            kernels=self.kernels,
        )

    def _qk_norm(self, prefix: str) -> QKNorm:
        query, key = (self._norm_weight(f"{prefix}.{part}_norm") for part in "qk")
        return QKNorm(query, key, self.config.rms_norm_eps)

    def _mlp(self, index: int, prefix: str) -> GatedMLP | SparseMLP:
        moe = self.config.mixture_of_experts
        if moe is None or index not in moe.layers:
            return self._gated_mlp(prefix)
        return SparseMLP(
            router=self.weights.tensor(f"{prefix}.gate.weight"),
            experts=tuple(
                self._gated_mlp(f"{prefix}.experts.{expert}") for expert in range(moe.num_experts)
            ),
            num_experts_per_token=moe.num_experts_per_token,
            normalizes_weights=moe.normalizes_weights,
        )

    def _gated_mlp(self, prefix: str) -> GatedMLP:
        config = self.config
        gate_up = ["gate_up_proj"] if config.has_fused_projections else ["gate_proj", "up_proj"]
        activation_mul: Callable[[Tensor], Tensor] = {
            "silu": self.kernels.silu_mul,
            "gelu_tanh": self.kernels.gelu_tanh_mul,
        }[config.activation]
        return GatedMLP(
            gate_up=self._linear(prefix, gate_up, config.has_mlp_bias),
            down=self._linear(prefix, ["down_proj"], config.has_mlp_bias),
            activation_mul=activation_mul,
        )

    def _linear(self, prefix: str, names: list[str], has_bias: bool) -> Linear:
        return self.weights.linear([f"{prefix}.{name}" for name in names], has_bias=has_bias)


def _rotary(rope: Rope, max_model_len: int, device: torch.device) -> RotaryEmbedding:
    frequencies, factor = rotary_frequencies(rope, max_model_len)
    return RotaryEmbedding(frequencies.to(device), factor, max_model_len)
