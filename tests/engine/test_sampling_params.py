import math

import pytest

from app.engine import InvalidRequest, SamplingParams


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
    ],
)
def test_values_out_of_range_are_refused_with_their_limits(options, message):
    with pytest.raises(InvalidRequest, match=message):
        SamplingParams(**options)


def test_a_single_stop_string_is_taken():
    assert SamplingParams(stop="\n").stop_strings == ("\n",)
