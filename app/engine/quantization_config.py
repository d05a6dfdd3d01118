"""What `quantization_config` in a checkpoint's `config.json` says. No torch here."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from app.engine.errors import InvalidRequest, UnsupportedModel

Settings = Mapping[str, Any]  # a part of a JSON file

SUPPORTED = (
    "gptq (4 or 8 bits, checkpoint_format gptq or gptq_v2) and awq (4 bits, version gemm); "
    "a plain checkpoint can be made smaller with quantization=int8 or int4"
)


@dataclass(frozen=True, slots=True)
class CheckpointQuantization:
    """How quantised modules are stored; `zero_offset` is what to add to the stored zeros.

    Which modules are quantised is told by their tensors: those have a `qweight`.
    """

    method: Literal["gptq", "awq"]
    bits: int
    zero_offset: int


def parse_quantization(raw: Settings) -> CheckpointQuantization:
    """Read `quantization_config`; raise UnsupportedModel with the list of what can be read.

    Group size, symmetry and the order of inputs are not read: the tensors show them.
    """
    method = str(raw.get("quant_method", "unknown")).lower()
    if method == "gptq":
        return _gptq(raw)
    if method == "awq":
        return _awq(raw)
    raise UnsupportedModel(
        f"checkpoints quantised with {method} are not supported; supported: {SUPPORTED}"
    )


def choose_on_load(asked: str | None, stored: CheckpointQuantization | None) -> str | None:
    """What to make of plain weights when they are loaded; None: leave all as stored.

    A checkpoint's own method may be asked for by name, as vLLM's users do.
    """
    if asked in ("int8", "int4"):
        if stored is None:
            return asked
        raise InvalidRequest(
            f"quantization is {asked}, the checkpoint is quantised with {stored.method} already: "
            "leave it out, or name a plain checkpoint"
        )
    method = None if stored is None else stored.method
    if asked in (None, method):
        return None
    raise InvalidRequest(
        f"quantization is {asked}, the checkpoint's is {method}: leave it out, or use int8 or int4"
        " for a plain checkpoint"
    )


def _gptq(raw: Settings) -> CheckpointQuantization:
    bits = _choice(raw, "bits", 4, (4, 8))
    layout = _choice(raw, "checkpoint_format", "gptq", ("gptq", "gptq_v2"))
    # A pattern with a minus leaves modules as they are; others change a module's bits.
    changed = [name for name in raw.get("dynamic") or {} if not name.startswith("-:")]
    if changed:
        raise UnsupportedModel(
            f"gptq with other settings for some modules (dynamic: {', '.join(changed)}) is not "
            f"supported; supported: {SUPPORTED}"
        )
    return CheckpointQuantization("gptq", bits, zero_offset=1 if layout == "gptq" else 0)


def _awq(raw: Settings) -> CheckpointQuantization:
    bits = _choice({"bits": raw.get("w_bit"), **raw}, "bits", 4, (4,))
    _choice({**raw, "version": str(raw.get("version", "gemm")).lower()}, "version", "", ("gemm",))
    _choice(raw, "zero_point", True, (True,))
    return CheckpointQuantization("awq", bits, zero_offset=0)


def _choice(raw: Settings, name: str, default: object, known: tuple[Any, ...]) -> Any:
    value = raw.get(name)
    if value is None:
        value = default
    if value not in known:
        choices = " or ".join(map(str, known))
        raise UnsupportedModel(
            f"{name} in quantization_config is {value}, supported is {choices}: {SUPPORTED}"
        )
    return value
