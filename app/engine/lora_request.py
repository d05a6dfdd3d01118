"""Which adapter a request asks for, under vLLM's names. No torch here."""

from dataclasses import dataclass

from app.engine.errors import InvalidRequest


@dataclass(frozen=True, slots=True)
class LoRARequest:
    """An adapter in PEFT's layout: a folder with `adapter_config.json` and its safetensors.

    `lora_int_id`, from 1 on, names one adapter for as long as requests use it.
    """

    lora_name: str
    lora_int_id: int
    lora_path: str

    def __post_init__(self) -> None:
        if self.lora_int_id < 1:
            raise InvalidRequest(f"lora_int_id is {self.lora_int_id}, it must be at least 1")
        if not self.lora_name:
            raise InvalidRequest("lora_name is empty: give the adapter a name")
