"""Embeddings against the hidden states of Hugging Face, whatever chunks and cache did."""

import pytest
import torch

from app.engine import LLM, InvalidRequest, PoolingParams, PromptTooLong, SamplingParams
from tests.engine.control import Control, make_sequences

OPTIONS = {"num_threads": 1, "kv_cache_memory_bytes": 2**22, "dtype": "float32"}
PROMPTS = [[5], [7, 8, 9], list(range(5, 75))]


@pytest.fixture(scope="module")
def llm(checkpoints):
    # 16 tokens a step: the long prompt comes in chunks
    return LLM(str(checkpoints("qwen2")[0]), max_num_batched_tokens=16, max_num_seqs=4, **OPTIONS)


@torch.no_grad()
def expected(model, prompt, pooling_type):
    states = model.model(torch.tensor([prompt])).last_hidden_state[0]
    vector = states[-1] if pooling_type == "last" else states.mean(dim=0)
    return torch.nn.functional.normalize(vector, dim=0)


@pytest.mark.parametrize("pooling_type", ["last", "mean"])
def test_embeddings_are_those_of_hugging_face(llm, checkpoints, pooling_type):
    params = PoolingParams(pooling_type)
    for _ in range(2):  # the second time the prefix is in the cache
        outputs = llm.embed([{"prompt_token_ids": p} for p in PROMPTS], params)
        for output, prompt in zip(outputs, PROMPTS, strict=True):
            vector = torch.tensor(output.outputs.embedding)
            torch.testing.assert_close(
                vector, expected(checkpoints("qwen2")[1], prompt, pooling_type), atol=1e-5, rtol=0
            )
    assert llm.stats().num_free_blocks == llm.stats().num_blocks


def test_last_state_uses_the_prefix_cache_and_the_mean_computes_all(llm):
    prompt = [9] * 40
    llm.generate(prompt, SamplingParams(max_tokens=1))
    assert llm.embed(prompt)[0].num_cached_tokens == 32
    assert llm.embed(prompt, PoolingParams("mean"))[0].num_cached_tokens == 0


def test_dimensions_cut_and_lengths_stay(llm):
    [whole] = llm.embed("The pages", PoolingParams(normalize=False))
    [cut] = llm.embed("The pages", PoolingParams(dimensions=8))
    assert whole.outputs.hidden_size == 64
    part = torch.tensor(whole.outputs.embedding[:8])
    torch.testing.assert_close(
        torch.tensor(cut.outputs.embedding), part / part.norm(), atol=1e-5, rtol=0
    )


def test_what_cannot_be_pooled_is_refused(llm):
    with pytest.raises(InvalidRequest, match="dimensions is 65, embeddings of this model have 64"):
        llm.embed("a", PoolingParams(dimensions=65))
    with pytest.raises(InvalidRequest, match="pooling_type is max, known: last, mean"):
        PoolingParams("max")
    with pytest.raises(PromptTooLong, match="513 tokens, the model takes 512"):
        llm.embed([[5] * 513])


def test_a_prompt_that_fills_the_model_has_an_embedding(llm):
    assert llm.embed([[5] * 512])[0].outputs.embedding


def test_scores_are_cosines(llm):
    alike, other = llm.score("The pages", ["The pages", "分块"])
    assert alike.outputs.score == pytest.approx(1)
    assert other.outputs.score < 0.99
    with pytest.raises(InvalidRequest, match="2 texts are to be scored against 3"):
        llm.score(["a", "b"], ["c", "d", "e"])


def test_pooled_sequence_ends_with_its_prompt_and_samples_nothing():
    control = Control(num_blocks=8, budget=8)
    [sequence] = make_sequences("a", range(5, 25))
    sequence.pooling = "mean"
    control.scheduler.add([sequence])
    batches = control.run()
    assert [batch.num_new_tokens for batch in batches] == [8, 8, 4]
    assert not any(batch.sampled for batch in batches)
    assert (sequence.finish_reason, sequence.num_output_tokens) == ("stop", 0)
