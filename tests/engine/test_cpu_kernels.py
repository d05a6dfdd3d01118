"""The C++ kernels against their torch twins, and against themselves in other company."""

import copy
import logging
import shutil
from pathlib import Path

import pytest
import torch

from app.engine.kernels import dispatch, reference
from app.engine.kernels.cpu import build, library
from app.engine.kernels.cpu.launch import CpuKernels
from app.engine.kernels.cpu.linear import PanelPacker
from app.engine.kernels.metadata import AttentionMetadata, AttentionSpec, KVCache, QKNorm
from app.engine.quantization import quantize_int4, quantize_int8
from app.engine.weights import pack
from tests.engine import engines

BLOCK_SIZE = 16
LAYER = 1
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 3e-2}
DTYPES = list(TOLERANCE)
TASKS = Path("/proc/self/task")


@pytest.fixture(scope="module")
def kernels():
    loaded = library.load_library()
    if loaded is None:
        pytest.skip(f"the C++ kernels are not compiled: {library.HOW_TO_BUILD}")
    return CpuKernels(loaded)


@pytest.fixture(scope="module")
def packer(kernels):
    return PanelPacker(kernels.library)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def assert_equal_enough(actual, expected):
    tolerance = TOLERANCE[expected.dtype]
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


class Step:
    """Sequences in shuffled blocks; what no row may see is NaN, and -1 follows short tables."""

    def __init__(self, contexts, row_counts, group, head_dim, dtype=torch.float32, **options):
        self.spec = AttentionSpec(head_dim**-0.5, **options)
        widths = [-(-context // BLOCK_SIZE) for context in contexts]
        order = torch.randperm(sum(widths) + 2).tolist()
        self.tables = [[order.pop() for _ in range(width)] for width in widths]
        self.row_counts, self.contexts = row_counts, contexts
        data = torch.full((sum(widths) + 2, 3, 2, 2, BLOCK_SIZE, head_dim), float("nan"))
        for table, context in zip(self.tables, contexts, strict=True):
            for i, block in enumerate(table):
                count = min(BLOCK_SIZE, context - i * BLOCK_SIZE)
                data[block, LAYER, :, :, :count] = torch.randn(2, 2, count, head_dim)
        self.cache = KVCache(data.to(dtype))
        self.query = torch.randn(sum(row_counts), 2 * group, head_dim).to(dtype)

    def run(self, attention, only=None):
        """All sequences, or one of them alone."""
        chosen = range(len(self.contexts)) if only is None else [only]
        positions = [
            position
            for i in chosen
            for position in range(self.contexts[i] - self.row_counts[i], self.contexts[i])
        ]
        metadata = AttentionMetadata.build(
            positions,
            [0] * len(positions),
            [self.row_counts[i] for i in chosen],
            [self.tables[i] for i in chosen],
            torch.device("cpu"),
        )
        return attention(self.rows(self.query, only), self.cache, LAYER, metadata, self.spec)

    def rows(self, tensor, only):
        return tensor if only is None else tensor.split(self.row_counts)[only]

    def expected(self):
        """By the twin, which multiplies masked values by 0: so without the NaN."""
        clean = KVCache(self.cache.data.nan_to_num(0))
        given, self.cache = self.cache, clean
        result = self.run(reference.paged_attention)
        self.cache = given
        return result


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("head_dim", [64, 80, 96, 128])
@pytest.mark.parametrize("group", [1, 2, 7, 8])
def test_attention_of_single_rows_and_chunks(group, head_dim, dtype, kernels):
    step = Step([1, 15, 16, 17, 40, 70], [1, 1, 1, 1, 20, 70], group, head_dim, dtype)
    assert_equal_enough(step.run(kernels.paged_attention), step.expected())


@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("window", [1, 5, 16, 200])
def test_attention_within_a_window(window, softcap, kernels):
    step = Step([30, 1, 600, 33], [1, 1, 18, 33], 3, 64, window=window, softcap=softcap)
    assert_equal_enough(step.run(kernels.paged_attention), step.expected())


def test_softcapped_scores(kernels):
    step = Step([30, 1, 18, 33], [1, 1, 18, 20], 3, 64, softcap=2.0)
    assert_equal_enough(step.run(kernels.paged_attention), step.expected())


@pytest.mark.parametrize("dtype", DTYPES)
def test_attention_over_a_long_context(dtype, kernels):
    step = Step([8192, 3], [1, 1], 2, 64, dtype)
    assert_equal_enough(step.run(kernels.paged_attention), step.expected())


def test_more_heads_in_a_group_than_a_task_takes(kernels):
    step = Step([33, 20], [1, 20], 37, 16)
    assert_equal_enough(step.run(kernels.paged_attention), step.expected())


def test_a_head_that_the_kernel_does_not_take_goes_to_the_twin(kernels):
    step = Step([33, 20], [1, 20], 2, 20)
    step.cache = KVCache(step.cache.data.nan_to_num(0))
    assert torch.equal(step.run(kernels.paged_attention), step.expected())


@pytest.mark.parametrize("block_size", [1, 5, 24])
def test_other_block_sizes(block_size, kernels, monkeypatch):
    monkeypatch.setattr(f"{__name__}.BLOCK_SIZE", block_size)
    step = Step([1, 5, 700, 60], [1, 1, 1, 30], 3, 32)
    assert_equal_enough(step.run(kernels.paged_attention), step.expected())


@pytest.mark.parametrize("window", [None, 40])
def test_a_sequence_has_the_same_bits_alone_and_in_a_batch(window, kernels):
    step = Step([700, 1, 17, 1100, 90], [1, 1, 1, 40, 90], 7, 64, window=window)
    together = step.run(kernels.paged_attention)
    for i in range(len(step.contexts)):
        assert torch.equal(step.rows(together, i), step.run(kernels.paged_attention, only=i))


@pytest.mark.parametrize("window", [None, 40])
def test_the_last_row_of_a_chunk_has_the_bits_of_a_single_row(window, kernels):
    step = Step([1100], [50], 7, 64, window=window)
    chunk = step.run(kernels.paged_attention)
    step.row_counts, step.query = [1], step.query[-1:]
    assert torch.equal(chunk[-1:], step.run(kernels.paged_attention))


def test_the_number_of_threads_changes_no_bit(kernels):
    step = Step([1700, 30, 900], [1, 1, 40], 7, 64)
    alone = Step([3000], [1], 7, 64)
    before = torch.get_num_threads()
    results = []
    for num_threads in (1, 2, 3):
        torch.set_num_threads(num_threads)
        results.append([s.run(kernels.paged_attention) for s in (step, alone)])
    torch.set_num_threads(before)
    assert all(torch.equal(a, b) for many in results for a, b in zip(many, results[0], strict=True))


@pytest.mark.skipif(not TASKS.is_dir(), reason="threads are counted in /proc")
def test_the_kernels_run_on_the_threads_that_torch_has(packer):
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    torch.randn(10**6).exp()
    num_threads = len(list(TASKS.iterdir()))
    pack(torch.randn(4096, 256), packer)(torch.randn(1, 256), None)
    torch.randn(10**6).exp()
    assert len(list(TASKS.iterdir())) <= num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", DTYPES)
def test_storing_keys_and_values(dtype, kernels):
    caches = [KVCache(torch.zeros(4, 3, 2, 2, BLOCK_SIZE, 24, dtype=dtype)) for _ in range(2)]
    fused = torch.randn(5, 8, 24).to(dtype)
    _, key, value = fused.split([4, 2, 2], dim=1)
    slots = torch.tensor([63, 0, 17, 16, 40])
    kernels.store_kv(key, value, caches[0], LAYER, slots)
    reference.store_kv(key, value, caches[1], LAYER, slots)
    assert torch.equal(caches[0].data, caches[1].data)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("has_norm", [False, True])
@pytest.mark.parametrize(("head_dim", "num_turned"), [(64, 64), (80, 80), (96, 48), (16, 6)])
def test_rotating(head_dim, num_turned, has_norm, dtype, kernels):
    fused = torch.randn(20, 8, head_dim).to(dtype)
    query, key, _ = fused.split([4, 2, 2], dim=1)
    cos, sin = (torch.rand(20, num_turned // 2).to(dtype) for _ in "cs")
    weights = (torch.randn(head_dim).to(dtype) for _ in "qk")
    norm = QKNorm(*weights, 1e-6) if has_norm else None
    actual = kernels.rotate(query, key, cos, sin, norm)
    expected = reference.rotate(query, key, cos, sin, norm)
    for one, other in zip(actual, expected, strict=True):
        assert_equal_enough(one, other)


@pytest.mark.parametrize(
    ("dtype", "weight_dtype"),
    [
        (torch.float32, torch.float32),
        (torch.bfloat16, torch.bfloat16),
        (torch.bfloat16, torch.float32),  # Gemma's 1 + weight
    ],
)
@pytest.mark.parametrize("width", [8, 576, 577])
def test_norms(width, weight_dtype, dtype, kernels):
    x, residual = (torch.randn(20, width).to(dtype) for _ in "xr")
    weight = torch.randn(width).to(weight_dtype)
    arguments = x, weight, 1e-6
    assert_equal_enough(kernels.rms_norm(*arguments), reference.rms_norm(*arguments))
    arguments = x, residual, weight, 1e-6
    actual, expected = kernels.add_rms_norm(*arguments), reference.add_rms_norm(*arguments)
    assert_equal_enough(actual[0], expected[0])
    assert torch.equal(actual[1], expected[1])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["silu_mul", "gelu_tanh_mul"])
@pytest.mark.parametrize("width", [96, 99])
def test_gated_activations(width, name, dtype, kernels):
    gate_up = (torch.randn(6, 2 * width) * 8).to(dtype)
    actual, expected = (getattr(k, name)(gate_up) for k in (kernels, reference))
    assert_equal_enough(actual, expected)


def test_extreme_gates_stay_finite(kernels):
    gate_up = torch.tensor([[-1e4, -100.0, -88.0, 0.0, 88.0, 1e4, -1e4, 1e4] + [1.0] * 8])
    assert_equal_enough(kernels.silu_mul(gate_up), reference.silu_mul(gate_up))
    assert_equal_enough(kernels.gelu_tanh_mul(gate_up), reference.gelu_tanh_mul(gate_up))


FORMS = {
    "float32": lambda weight: weight,
    "bfloat16": lambda weight: weight.bfloat16(),
    "int8": quantize_int8,
    "int4": quantize_int4,
}


def as_numbers(form):
    return form.float() if isinstance(form, torch.Tensor) else form.dequantize(torch.float32)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize(("num_outputs", "num_inputs"), [(37, 128), (16, 16), (130, 896)])
def test_linear_maps_on_panels(num_outputs, num_inputs, name, dtype, packer):
    form = FORMS[name](torch.randn(num_outputs, num_inputs))
    x, bias = torch.randn(103, num_inputs).to(dtype), torch.randn(num_outputs).to(dtype)
    expected = x.float() @ as_numbers(form).T + bias.float()
    actual = pack(form, packer)(x, bias)
    assert actual.dtype == dtype
    scale = num_inputs**0.5
    assert_equal_enough(actual / scale, (expected / scale).to(dtype))


@pytest.mark.parametrize("name", FORMS)
def test_a_row_times_a_weight_has_the_same_bits_in_any_batch_and_on_any_threads(name, packer):
    weight = pack(FORMS[name](torch.randn(150, 640)), packer)
    x = torch.randn(200, 640)
    together = weight(x, None)
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    parts = [weight(part, None) for part in x.split([1, 2, 3, 4, 5, 6, 7, 95, 77])]
    torch.set_num_threads(before)
    assert torch.equal(torch.cat(parts), together)


@pytest.mark.parametrize("name", ["float32", "bfloat16", "int8"])
def test_rows_of_panels_are_those_of_the_matrix(name, packer):
    form = FORMS[name](torch.randn(37, 300))
    index = torch.tensor([36, 0, 16, 15, 36])
    rows = pack(form, packer).rows(index, torch.float32)
    torch.testing.assert_close(rows, as_numbers(form)[index], rtol=1e-6, atol=0)


@pytest.mark.parametrize("cache_dtype", ["auto", "int8"])
@pytest.mark.parametrize("quantization", [None, "int4"])
def test_an_answer_has_the_same_bits_alone_and_in_a_batch(
    quantization, cache_dtype, kernels, checkpoints
):
    folder = checkpoints("qwen3")[0]
    core = engines.load(folder, quantization=quantization, kv_cache_dtype=cache_dtype)
    params = engines.greedy_params(12, logprobs=2)
    prompts = engines.make_prompts(5, [3, 40, 17, 90, 33])
    together = engines.generate(core, prompts, params)
    for prompt, output in zip(prompts, together, strict=True):
        alone = engines.generate(core, [prompt], params)[0]
        assert alone.logprobs == output.logprobs


def test_bfloat16_weights_stay_small_and_lose_nothing(kernels, checkpoints, tmp_path):
    _, model = checkpoints("llama-3-rope-tied")
    copy.deepcopy(model).bfloat16().save_pretrained(tmp_path)
    shutil.copy(checkpoints("llama-3-rope-tied")[0] / "tokenizer.json", tmp_path)
    prompts = engines.make_prompts(6, [3, 40, 17])
    params = engines.greedy_params(12, logprobs=2)
    small, wide = (
        engines.generate(engines.load(tmp_path, kernels=kind), prompts, params)
        for kind in ("auto", "torch")
    )
    for one, other in zip(small, wide, strict=True):
        assert one.token_ids == other.token_ids
        likely, expected = (
            [entry[t].logprob for entry, t in zip(o.logprobs, o.token_ids, strict=True)]
            for o in (one, other)
        )
        assert likely == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("dtype", DTYPES)
def test_keys_and_values_in_8_bits(dtype, kernels):
    step = Step([1, 15, 17, 70], [1, 1, 1, 20], 3, 72, dtype)
    clean = step.cache.data.nan_to_num(0)
    data, scales = reference.quantize_rows(clean)
    step.cache = KVCache(data, scales)
    twin = step.run(reference.paged_attention)
    assert_equal_enough(step.run(kernels.paged_attention), twin)


@pytest.mark.parametrize("dtype", DTYPES)
def test_storing_in_8_bits(dtype, kernels):
    caches = [
        KVCache(
            torch.zeros(4, 3, 2, 2, BLOCK_SIZE, 24, dtype=torch.int8),
            torch.zeros(4, 3, 2, 2, BLOCK_SIZE),
        )
        for _ in range(2)
    ]
    key, value = (torch.randn(5, 2, 24).to(dtype) for _ in "kv")
    key[1, 0] = 0
    slots = torch.tensor([63, 0, 17, 16, 40])
    kernels.store_kv(key, value, caches[0], LAYER, slots)
    reference.store_kv(key, value, caches[1], LAYER, slots)
    assert torch.equal(caches[0].data, caches[1].data)
    assert torch.equal(caches[0].scales, caches[1].scales)


def test_a_launcher_names_what_is_wrong(kernels):
    with pytest.raises(AssertionError, match=r"weight is \(7,\), it must be \(8,\)"):
        kernels.rms_norm(torch.zeros(2, 8), torch.zeros(7), 1e-6)
    cache = KVCache(torch.zeros(4, 3, 2, 2, BLOCK_SIZE, 24))
    rows = torch.zeros(1, 2, 24)
    with pytest.raises(AssertionError, match=r"slots is torch.int32, it must be torch.int64"):
        kernels.store_kv(rows, rows, cache, 0, torch.zeros(1, dtype=torch.int32))
    with pytest.raises(AssertionError, match="layer 3 of 3"):
        kernels.store_kv(rows, rows, cache, 3, torch.zeros(1, dtype=torch.int64))


def test_torch_serves_where_nothing_is_compiled(monkeypatch, tmp_path, caplog):
    monkeypatch.setattr(library, "library_path", lambda name: tmp_path / name)
    library.load_library.cache_clear()
    with caplog.at_level(logging.WARNING):
        assert dispatch.choose_kernels(torch.device("cpu")) is dispatch.REFERENCE
    assert library.HOW_TO_BUILD in caplog.text
    library.load_library.cache_clear()


def test_torch_can_be_asked_for():
    assert dispatch.choose_kernels(torch.device("cpu"), "torch") is dispatch.REFERENCE


def test_the_instruction_set_is_one_that_this_cpu_has(monkeypatch, tmp_path):
    cpu_info = tmp_path / "cpuinfo"
    monkeypatch.setattr(build, "CPU_INFO", cpu_info)
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    cpu_info.write_text("processor : 0\nflags : sse2 fma avx2 bmi2\n")
    assert build.usable_instruction_sets() == ["avx2", "baseline"]
    cpu_info.write_text("flags : avx2 fma avx512f avx512bw avx512dq avx512vl\n")
    assert build.usable_instruction_sets() == ["avx512", "avx2", "baseline"]
    cpu_info.write_text("flags : avx2\n")
    assert build.usable_instruction_sets() == ["baseline"]
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    assert build.usable_instruction_sets() == ["baseline"]


def test_a_missing_compiler_is_named_with_the_way_out(monkeypatch, tmp_path):
    monkeypatch.setattr(build, "COMPILED", tmp_path)
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(build.BuildFailed, match=r"install one \(Debian: apt-get install g\+\+\)"):
        build.build(["baseline"])
