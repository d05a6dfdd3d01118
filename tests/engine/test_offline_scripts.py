"""Scripts as vLLM's users write them, run with the import changed and nothing else."""

import contextlib
import io

import pytest

from app.engine import InvalidRequest
from app.engine.options import make_config

BASIC = """
prompts = ["Hello, my name is", "The pages of", "量子计算"]
sampling_params = SamplingParams(temperature=0.8, top_p=0.95, seed=1)

def main():
    llm = LLM(
        model=MODEL,
        tokenizer=MODEL,
        dtype="float",
        trust_remote_code=False,
        tensor_parallel_size=1,
        gpu_memory_utilization=0.5,
        max_model_len=256,
        enforce_eager=True,
        disable_log_stats=True,
        kv_cache_memory_bytes=2**22,
        seed=0,
    )
    outputs = llm.generate(prompts, sampling_params)
    for output in outputs:
        prompt = output.prompt
        generated_text = output.outputs[0].text
        print(f"Prompt: {prompt!r}, Output: {generated_text!r}")

main()
"""
CHAT = """
llm = LLM(MODEL, dtype="float32", kv_cache_memory_bytes=2**22)
sampling_params = llm.get_default_sampling_params()
conversation = [
    {"role": "system", "content": "You are a helpful assistant"},
    {"role": "user", "content": "Hello"},
    {"role": "assistant", "content": "Hello! How can I assist you today?"},
    {"role": "user", "content": "Write an essay about pages."},
]
outputs = llm.chat(conversation, sampling_params, use_tqdm=False)
batch = llm.chat([conversation for _ in range(3)], sampling_params=sampling_params, use_tqdm=True)
template = "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{% endfor %}{{ ending }}"
outputs = llm.chat(
    conversation,
    sampling_params,
    chat_template=template,
    chat_template_kwargs={"ending": "the end"},
    use_tqdm=False,
)
print(llm.get_tokenizer().decode(outputs[0].prompt_token_ids))
print(len(batch))
"""
EMBED = """
llm = LLM(model=MODEL, enforce_eager=True, dtype="float", kv_cache_memory_bytes=2**22)
outputs = llm.embed(["Hello, my name is", "The pages of"])
for output in outputs:
    embeds = output.outputs.embedding
    print(len(embeds), output.outputs.hidden_size)
scores = llm.score("Hello", ["Hello", "Pages"])
print(round(scores[0].outputs.score, 3))
"""
PREFIX_CACHING = """
prefix = "The pages of documents and the pages of the cache are kept apart. " * 4
prompts = [prefix + end for end in ("A block", "A table", "Why?")]
params = SamplingParams(temperature=0.0, max_tokens=6)
plain = LLM(MODEL, dtype="float32", kv_cache_memory_bytes=2**22, enable_prefix_caching=False)
cached = LLM(MODEL, dtype="float32", kv_cache_memory_bytes=2**22, enable_prefix_caching=True)
regular = plain.generate(prompts, params)
cached.generate(prompts[0], params)
outputs = cached.generate(prompts, params)
print([a.outputs[0].text for a in regular] == [b.outputs[0].text for b in outputs])
print(all(output.num_cached_tokens >= 64 for output in outputs))
"""
BEAM = """
llm = LLM(MODEL, dtype="float32", kv_cache_memory_bytes=2**22)
params = BeamSearchParams(beam_width=3, max_tokens=5)
outputs = llm.beam_search([{"prompt": "Hello"}, TokensPrompt(prompt_token_ids=[5, 6])], params)
for output in outputs:
    print(len(output.sequences), len(set(s.text for s in output.sequences)))
"""


STRUCTURED = """
import json
llm = LLM(MODEL, dtype="float32", kv_cache_memory_bytes=2**22)
params = SamplingParams(structured_outputs=StructuredOutputsParams(choice=["Positive", "Negative"]))
outputs = llm.generate("Classify this sentiment: Folio is wonderful!", sampling_params=params)
print(outputs[0].outputs[0].text in ("Positive", "Negative"))
schema = {"type": "object", "properties": {"days": {"type": "integer", "maximum": 99}},
          "required": ["days"], "additionalProperties": False}
params = SamplingParams(structured_outputs=StructuredOutputsParams(json=schema), max_tokens=60)
print(list(json.loads(llm.generate("Days: ", params)[0].outputs[0].text)))
"""


def run(script, checkpoints):
    out = io.StringIO()
    names = {"MODEL": str(checkpoints("qwen2")[0])}
    imports = (
        "from app.engine import LLM, BeamSearchParams, SamplingParams, StructuredOutputsParams, "
        "TokensPrompt\n"
    )
    with contextlib.redirect_stdout(out):
        exec(imports + script, names)
    return out.getvalue().splitlines()


def test_basic(checkpoints, capsys):
    lines = run(BASIC, checkpoints)
    assert len(lines) == 3
    assert lines[1].startswith("Prompt: 'The pages of', Output: '")
    assert "Processed prompts" not in capsys.readouterr().err  # no terminal, no bar


def test_chat(checkpoints):
    prompt, count = run(CHAT, checkpoints)
    assert prompt.startswith("[system]You are a helpful assistant[user]Hello[assistant]Hello!")
    assert prompt.endswith("the end")
    assert count == "3"


def test_embed(checkpoints):
    assert run(EMBED, checkpoints) == ["64 64", "64 64", "1.0"]


def test_prefix_caching(checkpoints):
    assert run(PREFIX_CACHING, checkpoints) == ["True", "True"]


def test_structured_outputs(checkpoints):
    assert run(STRUCTURED, checkpoints) == ["True", "['days']"]


def test_beam_search(checkpoints):
    assert run(BEAM, checkpoints) == ["3 3", "3 3"]


def test_what_vllm_has_and_the_engine_has_not_is_refused():
    with pytest.raises(InvalidRequest, match="tensor_parallel_size is 2, the engine runs on one"):
        make_config("m", {"tensor_parallel_size": 2})
    with pytest.raises(InvalidRequest, match=r"gpu_memory_utilization is 1\.5"):
        make_config("m", {"gpu_memory_utilization": 1.5})


def test_remote_code_never_runs_and_it_says_so(caplog):
    make_config("m", {"trust_remote_code": True})
    assert "code from a checkpoint never runs" in caplog.text


@pytest.mark.parametrize(
    ("given", "dtype"), [("half", "float16"), ("float", "float32"), ("torch.bfloat16", "bfloat16")]
)
def test_dtype_may_be_an_alias(given, dtype):
    assert make_config("m", {"dtype": given}).dtype == dtype
