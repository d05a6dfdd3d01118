"""Whether a checkpoint's weights are those that its config describes.

Shapes are checked before they are read, leftovers after: a weight that nothing reads was trained
for something that the engine does not compute.
"""

import logging
from collections.abc import Iterable, Mapping

from app.engine.errors import UnsupportedModel
from app.engine.model_config import ModelConfig

logger = logging.getLogger(__name__)

DECODER = ("model.layers.", "model.embed_tokens.", "model.norm.", "lm_head.")
# Computed from the config, or the head of tied embeddings written out once more.
KNOWN_COPIES = ("rotary_emb.inv_freq", "lm_head.weight")
NUM_NAMED = 3

Shape = tuple[int, ...]


def check_shapes(shapes: Mapping[str, Shape], config: ModelConfig) -> None:
    """Raise UnsupportedModel for the first weight of another shape than the config's."""
    for name, shape in shapes.items():
        expected = expected_shape(name, config)
        if expected is not None and shape != expected:
            raise UnsupportedModel(
                f"the weight {name} is {list(shape)}, config.json makes it {list(expected)}: "
                "they are not of one model"
            )


def check_leftovers(names: Iterable[str], config: ModelConfig) -> None:
    """Raise UnsupportedModel for weights of the decoder that were not read, warn of others."""
    left = sorted(name for name in names if not name.endswith(KNOWN_COPIES))
    of_decoder = [name for name in left if name.startswith(DECODER)]
    if of_decoder:
        raise UnsupportedModel(
            f"the checkpoint has {_listed(of_decoder)}, which {config.architecture} with its "
            "config.json does not use: answers would not be those of the model"
        )
    if left:
        logger.warning("weights not used num=%d weights=%s", len(left), _listed(left))


def expected_shape(name: str, config: ModelConfig) -> Shape | None:
    """The shape of a plain weight or bias, None for what the table does not know."""
    if not name.startswith(DECODER):
        return None
    *_, module, kind = name.split(".")
    shape = _shapes(config, is_expert=".experts." in name).get(module)
    if shape is None or kind not in ("weight", "bias"):
        return None
    return shape if kind == "weight" else shape[:1]


def _shapes(config: ModelConfig, *, is_expert: bool) -> dict[str, Shape]:
    hidden, moe = config.hidden_size, config.mixture_of_experts
    intermediate = moe.intermediate_size if is_expert and moe else config.intermediate_size
    query, key = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    shapes: dict[str, Shape] = {
        "embed_tokens": (config.vocab_size, hidden),
        "lm_head": (config.vocab_size, hidden),
        "q_proj": (query, hidden),
        "k_proj": (key, hidden),
        "v_proj": (key, hidden),
        "qkv_proj": (query + 2 * key, hidden),
        "o_proj": (hidden, query),
        "gate_proj": (intermediate, hidden),
        "up_proj": (intermediate, hidden),
        "gate_up_proj": (2 * intermediate, hidden),
        "down_proj": (hidden, intermediate),
        "gate": (moe.num_experts if moe else 0, hidden),
        "q_norm": (config.head_dim,),
        "k_norm": (config.head_dim,),
        "norm": (hidden,),
    }
    norms = ("input", "post_attention", "pre_feedforward", "post_feedforward")
    return shapes | {f"{name}_layernorm": (hidden,) for name in norms}


def _listed(names: list[str]) -> str:
    more = len(names) - NUM_NAMED
    return ", ".join(names[:NUM_NAMED]) + (f" and {more} more" if more > 0 else "")
