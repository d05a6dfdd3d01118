"""Embeddings: texts to vectors."""

import asyncio
import base64
import struct
import time
import uuid
from collections.abc import Sequence

from app.api.generate import replies
from app.api.generate.completions import as_items
from app.api.generate.params import request_options
from app.api.generate.schemas import EmbeddingIn
from app.engine import EmbeddingRequestOutput, PoolingParams
from app.engine.prompts import Prompt
from app.engine_service import ServedModel

AT_ONCE = 32  # texts of one request in the engine: a long list leaves room in its queue


async def outputs_of(served: ServedModel, wanted: EmbeddingIn) -> list[EmbeddingRequestOutput]:
    """The engine's outputs, in the order of the texts; the first failure ends the others."""
    params = PoolingParams(wanted.pooling_type, wanted.normalize, wanted.dimensions)
    places = asyncio.Semaphore(AT_ONCE)

    async def embed(prompt: Prompt) -> EmbeddingRequestOutput:
        async with places:
            return await served.llm.embed(prompt, params, **request_options(served, wanted))

    tasks = [asyncio.ensure_future(embed(item)) for item in as_items(wanted.input)]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()


def reply_of(
    served: ServedModel, wanted: EmbeddingIn, outputs: Sequence[EmbeddingRequestOutput]
) -> replies.EmbeddingList:
    """The vectors as numbers, or as float32 in base64, which OpenAI's client asks for."""
    num_tokens = sum(len(output.prompt_token_ids) for output in outputs)
    vectors = [output.outputs.embedding for output in outputs]
    is_packed = wanted.encoding_format == "base64"
    return replies.EmbeddingList(
        id=f"embd-{uuid.uuid4().hex}",
        created=int(time.time()),
        model=served.asked_name,
        data=[
            replies.EmbeddingOut(index=index, embedding=_pack(vector) if is_packed else vector)
            for index, vector in enumerate(vectors)
        ],
        usage=replies.EmbeddingUsage(prompt_tokens=num_tokens, total_tokens=num_tokens),
    )


def _pack(vector: Sequence[float]) -> str:
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
