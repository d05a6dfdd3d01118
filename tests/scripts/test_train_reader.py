"""The reader's exercises are what they claim, and a run that was cut is the same run."""

import json
import random
from dataclasses import replace

import pytest
import torch
from tokenizers import Tokenizer

from app.rag.replies import REFUSAL
from app.scripts.train_reader import training
from app.scripts.train_reader.corpus import Grounded, Text, read_grounded
from app.scripts.train_reader.examples import Exercises, Size
from app.scripts.train_reader.export import draw, export
from app.scripts.train_reader.nonsense import Nonsense
from app.scripts.train_reader.overlap import overlapping
from app.scripts.train_reader.questions import make_question
from app.scripts.train_reader.tokens import encode, ids_of, train_tokenizer
from app.scripts.train_reader.training import LOG, Recipe, Stage, Training, answer_loss

EN = Text(
    "leave.md",
    "en",
    (
        ("Each employee has fifteen days of paid leave a year.", "Leave is asked for in writing."),
        ("The canteen in Building 7 opens at noon.", "Guests pay with a card at the counter."),
        ("A visitor needs a badge from the porter.", "Badges are given back in the evening."),
    ),
)
ZH = Text(
    "zh.md",
    "zh",
    (
        (
            "每位员工每年享有十五天带薪年假。",
            "请假需要以书面形式提出申请。",
            "食堂中午十二点开门营业。",
        ),
        (
            "访客需要在前台领取临时工牌。",
            "工牌必须在当天晚上归还前台。",
            "会议室可以通过系统提前预订。",
        ),
    ),
)
GROUNDED = Grounded("How long is the wall?", ("It is old.", "The wall is 90 m long.", "Go."), 1)
SIZE = Size(3, 4)


@pytest.fixture(scope="module")
def exercises():
    return Exercises([EN, ZH], [GROUNDED])


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer([*EN.sentences, *ZH.sentences, *REFUSAL.values()], 700)


def test_answers_are_sentences_of_the_source_that_they_cite(exercises):
    rng = random.Random(1)
    examples = [exercises.draw(rng, SIZE) for _ in range(300)]
    for example in examples:
        for sentence, number in example.answer:
            assert sentence in example.sources[number]
            assert f"{sentence} [{number}]" in example.completion
        if not example.answer:
            assert example.completion == REFUSAL[example.language]
    assert {len(example.answer) for example in examples} == {0, 1, 2}
    assert {example.language for example in examples} == {"en", "zh"}


def test_the_same_seed_draws_the_same_examples(exercises):
    one, other = random.Random("1:5"), random.Random("1:5")
    assert [exercises.draw(one, SIZE) for _ in range(20)] == [
        exercises.draw(other, SIZE) for _ in range(20)
    ]


@pytest.mark.parametrize("text", [EN, ZH])
def test_a_question_has_words_of_its_sentence_and_hides_some(text):
    rng = random.Random(2)
    for sentence in text.sentences * 5:
        question = make_question(sentence, text.language, rng)
        assert question
        assert sentence not in question
        assert any(
            sentence[i : i + 2].lower() in question.lower() for i in range(len(sentence) - 1)
        )


def test_sciq_is_not_learned_from(tmp_path):
    passage = "The wall is 90 m long. Nobody knows who built it, or when."
    rows = [
        {
            "template": template,
            "prompt": f'Question: "How long is {template}?"\n\nContext: "{passage}"\n\nAnswer:\n',
            "completion": "90 m<|endoftext|>",
        }
        for template in ("sciq_Direct_Question", "adversarial_qa_dbert_question_context_answer")
    ]
    (tmp_path / "t0_grounded_qa.jsonl").write_text("\n".join(map(json.dumps, rows)))
    [item] = read_grounded(tmp_path)
    assert "adversarial" in item.question
    assert item.sentences[item.supporting] == "The wall is 90 m long."


def test_a_planted_overlap_is_found(tmp_path):
    shared = "the quick brown fox jumps over the lazy dog and then it sleeps until noon"
    (tmp_path / "a.jsonl").write_text(json.dumps({"context": f"Once {shared.upper()}, he said."}))
    texts = [f"They say: {shared}.", shared.rsplit(" ", 4)[0], "分块管理键值缓存可以减少内存碎片"]
    assert overlapping(texts, tmp_path) == [True, False, False]
    (tmp_path / "zh.jsonl").write_text(
        json.dumps({"question": "为何分块管理键值缓存可以减少内存？"})
    )
    assert overlapping(texts, tmp_path) == [True, False, True]


def test_only_the_answer_counts_in_the_loss(exercises, tokenizer):
    example = next(
        e for e in iter(lambda: exercises.draw(random.Random(3), SIZE), None) if e.answer
    )
    encoded = encode(example, tokenizer, copied_weight=0.1)
    length = len(encoded.weights)
    written = tokenizer.decode(list(encoded.token_ids[-length:-1]), skip_special_tokens=False)
    assert written == example.completion
    assert encoded.weights[:4] == (1.0,) * 4
    assert 0.1 in encoded.weights
    assert encoded.weights[-1] == 1.0


def test_nonsense_has_the_form_of_the_exercises(tokenizer):
    refusals = tuple(tuple(ids_of(tokenizer, text)) for text in REFUSAL.values())
    nonsense = Nonsense(tokenizer, refusals)
    rng = random.Random(4)
    drawn = [nonsense.choose(rng, SIZE, 0.5) for _ in range(200)]
    num_refusals = 0
    for item in drawn:
        answer = item.token_ids[-len(item.weights) : -1]
        prompt = item.token_ids[: -len(item.weights)]
        if answer in refusals:
            num_refusals += 1
            continue
        number = tuple(ids_of(tokenizer, " [1]"))
        first = answer[: len(answer) - len(number)] if answer[-3:-1] == number[:2] else answer[:5]
        windows = {prompt[i : i + len(first)] for i in range(len(prompt))}
        assert first in windows
    assert 10 < num_refusals < 60


def test_a_run_that_was_cut_is_the_same_run(exercises, tokenizer, tmp_path, monkeypatch):
    torch.set_num_threads(1)
    stages = (
        Stage(0.0, "copy", SIZE, 1.0),
        Stage(0.4, "choose", SIZE, 0.1),
        Stage(0.7, "text", SIZE, 0.1),
    )
    monkeypatch.setattr(training, "CURRICULUM", stages)
    recipe = Recipe(steps=8, batch_tokens=512, hidden_size=32, num_layers=2, num_heads=2, warmup=2)
    whole = run(recipe, exercises, tokenizer, tmp_path / "whole", cuts=())
    cut = run(recipe, exercises, tokenizer, tmp_path / "cut", cuts=(3, 6))
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, cut.model.state_dict()[name]), name
    other = Training(replace(recipe, seed=2), exercises, tokenizer, tmp_path / "cut")
    with pytest.raises(ValueError, match="another recipe"):
        other.resume()


def run(recipe, exercises, tokenizer, folder, cuts):
    """Train in several goes; `cuts` are the steps after which it is stopped."""
    folder.mkdir()
    made = None
    for end in (*cuts, recipe.steps):
        made = Training(recipe, exercises, tokenizer, folder)
        if (folder / training.CHECKPOINT).exists():
            made.resume()
        while made.step < end:
            made.learn_step()
        made.save()
    return made


def test_training_lowers_the_loss_and_writes_a_model_that_loads(exercises, tokenizer, tmp_path):
    torch.set_num_threads(1)
    recipe = Recipe(steps=40, batch_tokens=512, hidden_size=32, num_layers=2, num_heads=2, warmup=2)
    made = Training(recipe, exercises, tokenizer, tmp_path)
    batch = [encode(exercises.draw(random.Random(i), Size(1, 2)), tokenizer) for i in range(8)]
    before, _, _ = answer_loss(made.model, batch)
    made.run(until=float("inf"), tell=lambda line: None)
    after, _, _ = answer_loss(made.model, batch)
    assert after < before
    export(made.model, tokenizer, tmp_path / LOG, tmp_path / "model")
    assert Tokenizer.from_file(str(tmp_path / "model" / "tokenizer.json"))
    assert "chat_template" in json.loads((tmp_path / "model/tokenizer_config.json").read_text())
    assert (tmp_path / "model/model.safetensors").stat().st_size < 16e6
    assert draw([{"step": 1, "loss": 2.0, "choice_accuracy": 0.5}]).startswith("<svg")
