"""The reader's exercises, the proof of no overlap, resumed training, and its export."""

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM

from app.engine import LLM, QuoteOnlyParams, QuoteSource, SamplingParams, StructuredOutputsParams
from app.rag.llm.reader import READER_FOLDER
from app.rag.llm.reader_prompt import reader_prompt
from app.rag.replies import REFUSAL
from app.scripts.train_reader.corpus import Grounded, Text, read_grounded
from app.scripts.train_reader.examples import Exercises, Size
from app.scripts.train_reader.export import export
from app.scripts.train_reader.manifest import LICENCES, without_overlap
from app.scripts.train_reader.overlap import evaluation_runs, overlapping_texts
from app.scripts.train_reader.plot import plot
from app.scripts.train_reader.tokens import count_tokens, encode, train_tokenizer
from app.scripts.train_reader.training import LOG, Recipe, Training

THINGS = ("heron", "kettle", "lantern", "harbour", "violin", "glacier", "orchard", "compass")
ENGLISH = tuple(
    f"{thing.capitalize()} {i} weighs {10 + i} lbs and stands beside the northern door of the hall."
    for i, thing in enumerate(THINGS)
)
CHINESE = tuple(
    f"第{name}号仓库保存着来自{place}的陶瓷花瓶，每天由值班人员检查温度和湿度。"
    for name, place in zip(
        "一二三四五六七八",
        ("北京", "上海", "广州", "成都", "杭州", "武汉", "南京", "西安"),
        strict=True,
    )
)
TEXTS = (
    Text("en", "en", "folio", tuple((s,) for s in ENGLISH)),
    Text("zh", "zh", "folio", tuple((s,) for s in CHINESE)),
)
GROUNDED = (
    Grounded("How much does heron 0 weigh?", ENGLISH[:4], 0, "quoref"),
    Grounded("Where does the violin stand?", ENGLISH[3:7], 1, "quoref"),
)
MUSEUM = {
    1: [
        "The pump house was rebuilt in 1994 after a flood.",
        "Visitors park behind the library.",
        "Tickets are sold at the northern gate.",
    ],
    2: ["A guided tour takes forty minutes.", "The museum closes at six on Sundays."],
}
MANUAL = {
    1: ["备份文件每天凌晨自动上传到服务器。", "管理员可以在设置页面修改密码。"],
    2: ["软件包需要在构建之前安装编译器。", "日志默认保留三十天。"],
}
RECIPE = Recipe(steps=20, batch_tokens=256, intermediate_size=32)


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer([*ENGLISH, *CHINESE, *REFUSAL.values()], 1000)


def make_training(tokenizer, folder, recipe=RECIPE):
    counts = torch.zeros(tokenizer.get_vocab_size())
    for token, count in count_tokens([*ENGLISH, *CHINESE], tokenizer).items():
        counts[token] = count
    return Training(recipe, Exercises(TEXTS, GROUNDED), tokenizer, counts, folder)


def draw(number, seed=1):
    exercises, rng = Exercises(TEXTS, GROUNDED), random.Random(seed)
    return [exercises.draw(rng, Size(2, 4)) for _ in range(number)]


def test_answers_are_sentences_of_the_source_they_cite():
    examples = draw(200)
    assert {len(e.answer) for e in examples} == {0, 1, 2}
    assert {e.language for e in examples} == {"en", "zh"}
    for example in examples:
        assert all(sentence in example.sources[number] for sentence, number in example.answer)
        if not example.answer:
            assert example.completion == REFUSAL[example.language]


def test_exercises_follow_from_the_seed():
    assert draw(20) == draw(20)
    assert draw(20) != draw(20, seed=2)


def test_the_prompt_has_the_question_first_and_the_sentences_on_lines_of_their_own():
    assert reader_prompt("a\nb?", {2: ["One.", "Two."]}) == "a b?\n[2]\nOne.\nTwo."


def test_only_the_answer_is_learned(tokenizer):
    example = next(e for e in draw(50) if e.answer)
    encoded = encode(example, tokenizer, 0.1)
    answer = encoded.token_ids[-len(encoded.weights) : -1]
    assert tokenizer.decode(list(answer)) == example.completion
    assert encoded.weights[0] == encoded.weights[-1] == 1.0
    assert 0.1 in encoded.weights


def test_non_commercial_questions_are_never_read(tmp_path):
    prompt = (
        "Question: How tall is the tower?\n\nContext: The tower is 90 m tall. It was painted red."
    )
    rows = [
        {"template": template, "prompt": prompt.replace("tower", thing), "completion": "90 m"}
        for template, thing in (("sciq_Direct_Question", "mast"), ("quoref_x", "tower"))
    ]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "t0_grounded_qa.jsonl").write_text(lines, encoding="utf-8")
    [item] = read_grounded(tmp_path)
    assert item.origin == "quoref"
    assert item.sentences[item.supporting] == "The tower is 90 m tall."


def test_planted_overlaps_are_found_and_left_out(tmp_path):
    for language, planted in (("en", ENGLISH[2].upper()), ("zh", CHINESE[5])):
        row = json.dumps({"context": [f"Before. {planted} After."]})
        (tmp_path / "set.jsonl").write_text(row + "\n", encoding="utf-8")
        known = evaluation_runs([tmp_path])
        assert [text.name for text in overlapping_texts(TEXTS, known)] == [language]
    corpus = without_overlap(TEXTS, GROUNDED, known)
    assert [text.name for text in corpus.texts] == ["en"]
    assert corpus.num_left_out == 1


def test_a_folder_without_evaluation_sets_proves_nothing(tmp_path):
    with pytest.raises(ValueError, match=r"no \.jsonl file"):
        evaluation_runs([tmp_path])


def test_a_resumed_run_has_the_weights_of_an_unbroken_one(tokenizer, tmp_path):
    folders = [tmp_path / name for name in ("whole", "broken")]
    for folder in folders:
        folder.mkdir()
    whole = make_training(tokenizer, folders[0])
    before = {name: value.clone() for name, value in whole.model.state_dict().items()}
    whole.run(float("inf"), lambda _: None)
    broken = make_training(tokenizer, folders[1])
    broken.run(float("inf"), lambda _: None, until_step=10)
    assert broken.step == 10
    resumed = make_training(tokenizer, folders[1])
    resumed.resume()
    resumed.run(float("inf"), lambda _: None)
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name
    assert any(
        not torch.equal(value, before[name]) for name, value in whole.model.state_dict().items()
    )
    with pytest.raises(ValueError, match="another recipe"):
        make_training(tokenizer, folders[1], replace(RECIPE, seed=2)).resume()
    plot(folders[1] / LOG, tmp_path / "curve.svg")
    assert "<polyline" in (tmp_path / "curve.svg").read_text(encoding="utf-8")


def test_the_laid_circuits_choose_by_words_before_any_training(tokenizer, tmp_path):
    training = make_training(tokenizer, tmp_path)
    export(training.model, tokenizer, tmp_path / "model")
    sources = {1: ENGLISH[:4], 2: ENGLISH[4:]}
    right = [
        quote(tmp_path / "model", f"{thing.capitalize()}?", sources).startswith(sentence)
        for thing, sentence in zip(THINGS, ENGLISH, strict=True)
    ]
    assert sum(right) >= 6  # chance is 1


def test_the_shipped_reader_quotes_and_says_what_it_was_made_from():
    manifest = json.loads((READER_FOLDER / "sources.json").read_text(encoding="utf-8"))
    assert manifest["overlaps"] == 0
    assert len(manifest["evaluation_sets"]) >= 5
    origins = {source["origin"]: source["licence"] for source in manifest["sources"]}
    assert origins == LICENCES
    for file in READER_FOLDER.iterdir():
        assert file.stat().st_size < 16_000_000, file.name
    assert quote(READER_FOLDER, "Where are tickets sold?", MUSEUM) == f"{MUSEUM[1][2]} [1]"
    assert quote(READER_FOLDER, "日志保留多久？", MANUAL) == f"{MANUAL[2][1]} [2]"
    llm = LLM(str(READER_FOLDER), dtype="float32", max_model_len=1024)
    message = {"role": "user", "content": reader_prompt("Where can I park?", MUSEUM)}
    [output] = llm.chat([message], SamplingParams(temperature=0.0, max_tokens=24), use_tqdm=False)
    assert output.outputs[0].text.strip()
    other = LlamaForCausalLM.from_pretrained(READER_FOLDER, dtype=torch.float32)
    ids = list(output.prompt_token_ids)
    for token in output.outputs[0].token_ids:
        assert int(other(torch.tensor([ids])).logits[0, -1].argmax()) == token
        ids.append(token)


def quote(folder: Path, question: str, sources: Mapping[int, Sequence[str]]) -> str:
    llm = LLM(str(folder), dtype="float32", max_model_len=512, kv_cache_memory_bytes=2**24)
    params = SamplingParams(
        temperature=0.0,
        max_tokens=128,
        structured_outputs=StructuredOutputsParams(
            quote_only=QuoteOnlyParams(
                [QuoteSource(number, own) for number, own in sources.items()], max_sentences=1
            )
        ),
    )
    message = {"role": "user", "content": reader_prompt(question, sources)}
    [output] = llm.chat([message], params, use_tqdm=False)
    return output.outputs[0].text
