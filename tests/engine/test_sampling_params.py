import math

import pytest

from app.engine import (
    InvalidRequest,
    RequestOutputKind,
    SamplingParams,
    StructuredOutputsParams,
)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n": 0}, "n is 0, it must be between 1 and 256"),
        ({"temperature": -0.1}, "temperature is -0.1"),
        ({"temperature": math.nan}, "temperature is nan"),
        ({"top_p": 0}, "top_p is 0"),
        ({"top_p": 1.1}, "top_p is 1.1"),
        ({"top_k": -2}, "top_k is -2"),
        ({"min_p": 2}, "min_p is 2"),
        ({"presence_penalty": 3}, "presence_penalty is 3"),
        ({"repetition_penalty": 0}, "repetition_penalty is 0"),
        ({"max_tokens": 0}, "max_tokens is 0, it must be at least 1"),
        ({"min_tokens": 9, "max_tokens": 8}, "min_tokens is 9, above max_tokens 8"),
        ({"logprobs": 101}, "logprobs is 101"),
        ({"stop": [""]}, "empty string"),
        ({"logit_bias": {3: 101}}, "logit_bias of token 3 is 101"),
        ({"n": 2, "temperature": 0}, "greedy"),
        ({"n": 1.5}, "n is 1.5, it must be a whole number"),
        ({"n": 257}, "n is 257"),
        ({"n": 10**400}, "n is 10+, it must be between 1 and 256"),
        ({"temperature": 101}, "temperature is 101, it must be between 0 and 100"),
        ({"top_k": 0.5}, "top_k is 0.5, it must be a whole number"),
        ({"top_p": math.nan}, "top_p is nan"),
        ({"min_p": -0.1}, "min_p is -0.1"),
        ({"frequency_penalty": -2.5}, "frequency_penalty is -2.5, it must be between -2 and 2"),
        ({"repetition_penalty": math.inf}, "repetition_penalty is inf"),
        ({"min_tokens": -1}, "min_tokens is -1, it must be at least 0"),
        ({"max_tokens": "9"}, "max_tokens is '9', it must be a whole number"),
        ({"logprobs": -1}, "logprobs is -1, it must be between 0 and 100"),
        ({"prompt_logprobs": 200}, "prompt_logprobs is 200"),
        ({"bad_words": ["a", ""]}, "bad_words holds an empty string"),
        ({"allowed_token_ids": []}, "allowed_token_ids is empty"),
        ({"truncate_prompt_tokens": 0}, "truncate_prompt_tokens is 0, it must be at least 1"),
        ({"truncate_prompt_tokens": -2}, "truncate_prompt_tokens is -2"),
        ({"stop": ["a"], "detokenize": False}, "stop strings need the text"),
        ({"repetition_penalty": 1e-38}, "repetition_penalty is 1e-38, it must be between 0.01"),
        ({"stop": ["a"] * 129}, "stop has 129 strings with 129 characters"),
        ({"stop": "a" * 16_385}, "stop has 1 strings with 16385 characters"),
    ],
)
def test_values_out_of_range_are_refused_with_their_limits(options, message):
    with pytest.raises(InvalidRequest, match=message):
        SamplingParams(**options)


def test_stop_tokens_count_once():
    assert SamplingParams(stop_token_ids=[7, 3, 7, 7]).stop_token_ids == (7, 3)


def test_a_single_stop_string_is_taken():
    assert SamplingParams(stop="\n").stop_strings == ("\n",)


def test_what_is_written_in_offline_scripts_is_taken():
    params = SamplingParams(
        temperature=0.8,
        top_p=0.95,
        seed=-1,
        stop=None,
        stop_token_ids=None,
        bad_words="word",
        logit_bias=None,
        spaces_between_special_tokens=False,
        structured_outputs=StructuredOutputsParams(choice=["Positive", "Negative"]),
        output_kind=RequestOutputKind.DELTA,
    )
    assert (params.seed, params.stop_strings, params.bad_words) == (None, (), ("word",))
    assert params.structured_outputs.choice == ("Positive", "Negative")


def test_unknown_fields_are_refused():
    with pytest.raises(TypeError, match="best_of"):
        SamplingParams(best_of=2)
