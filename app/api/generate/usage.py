"""Token counts under OpenAI's names."""

from collections.abc import Sequence

from app.api.generate.replies import PromptTokensDetails, Usage
from app.engine import RequestOutput


def usage_of(outputs: Sequence[RequestOutput]) -> Usage:
    """Those of the prompts and all their answers together."""
    num_prompt = sum(len(output.prompt_token_ids) for output in outputs)
    num_answer = sum(len(c.token_ids) for output in outputs for c in output.outputs)
    return Usage(
        prompt_tokens=num_prompt,
        completion_tokens=num_answer,
        total_tokens=num_prompt + num_answer,
        prompt_tokens_details=PromptTokensDetails(
            cached_tokens=sum(output.num_cached_tokens for output in outputs)
        ),
    )
