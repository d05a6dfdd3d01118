"""LoRA adapters served as models of their own, beside the model that they adapt."""

import openai
import pytest

from app.config import Settings
from app.errors import InvalidInput
from app.generate import create_generate_app
from app.wiring.engine import adapters_of, build_engine_service
from tests.api.conftest import serving
from tests.engine import tiny
from tests.engine.test_lora import make_adapter, merged

NAME = "tiny"
PROMPT = [5, 9, 17, 33, 40]


def make_settings(model, adapters, **options):
    return Settings(
        _env_file=None,
        role="generate",
        llm_model=str(model),
        served_model_name=NAME,
        engine_dtype="float32",
        engine_kv_cache_mb=8,
        engine_lora_modules=adapters,
        num_threads=1,
        **options,
    )


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The model's folder, those of two adapters, and what each makes of the prompt."""
    folder = tmp_path_factory.mktemp("adapters")
    model = tiny.make_checkpoint(folder / "model", "qwen2")
    paths = {
        name: make_adapter(folder / name, model, seed=seed) for seed, name in ((1, "a"), (2, "b"))
    }
    models = {NAME: model} | {name: merged(model, path) for name, path in paths.items()}
    expected = {name: tiny.greedy(one, PROMPT, 8) for name, one in models.items()}
    return folder / "model", paths, expected


@pytest.fixture(scope="module")
def app(made):
    folder, paths, _ = made
    app = create_generate_app(make_settings(folder, f"a={paths['a']}, b = {paths['b']}"))
    with serving(app) as url:
        assert app.state.services.is_settled.wait(60)
        app.state.url = url
        yield app


@pytest.fixture(scope="module")
def client(app):
    url = app.state.url
    with openai.OpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0) as client:
        yield client


def test_adapters_are_models_with_a_parent(client):
    models = [
        (model.id, model.root, getattr(model, "parent", None)) for model in client.models.list()
    ]
    assert models == [(NAME, NAME, None), ("a", NAME, NAME), ("b", NAME, NAME)]
    assert client.models.retrieve("b").id == "b"
    with pytest.raises(openai.NotFoundError, match="there is 'tiny', 'a', 'b'"):
        client.models.retrieve("c")


def test_model_chooses_the_adapter(client, app, made):
    llm, expected = app.state.services.served.llm, made[2]
    assert len({tuple(tokens) for tokens in expected.values()}) == 3
    for name, tokens in expected.items():
        options = {
            "temperature": 0,
            "extra_body": {"ignore_eos": True, "skip_special_tokens": False},
        }
        answer = client.completions.create(model=name, prompt=PROMPT, max_tokens=8, **options)
        assert answer.model == name
        text = llm.tokenizer.decode([*PROMPT, *tokens], skip_special_tokens=False)
        assert text.endswith(answer.choices[0].text)
        assert answer.choices[0].text


def test_chats_streams_and_embeddings_take_adapters(client):
    asked = [{"role": "user", "content": "Why?"}]
    options = {
        "messages": asked,
        "max_tokens": 6,
        "temperature": 0,
        "extra_body": {"ignore_eos": True},
    }
    texts, vectors = {}, {}
    for name in (NAME, "a", "b"):
        chunks = list(client.chat.completions.create(model=name, stream=True, **options))
        assert {chunk.model for chunk in chunks} == {name}
        texts[name] = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
        reply = client.embeddings.create(model=name, input="The pages", encoding_format="float")
        vectors[name] = tuple(reply.data[0].embedding)
        assert reply.model == name
    assert len(set(texts.values())) == 3
    assert len(set(vectors.values())) == 3


@pytest.mark.parametrize(
    ("adapters", "message"),
    [
        ("a", "has 'a': write name=folder"),
        ("=x", "has '=x': write name=folder"),
        ("a=x,a=y", "a names two models"),
        ("tiny=x", "tiny names two models"),
    ],
)
def test_wrong_settings_stop_the_start(adapters, message):
    with pytest.raises(InvalidInput, match=message):
        build_engine_service(make_settings("x", adapters))


def test_no_adapters_are_the_default():
    assert adapters_of(make_settings("x", "")) == ()


def test_adapter_that_cannot_be_read_stops_the_start(made, tmp_path):
    service = build_engine_service(make_settings(made[0], f"a={tmp_path}"))
    service.start()
    assert service.is_settled.wait(60)
    service.close(10)
    assert service.progress.phase == "failed"
    assert "adapter a" in service.progress.detail


def test_user_is_the_tenant_that_shares_the_engine(client, app, monkeypatch):
    core, tenants = app.state.services.served.llm._core, []
    add = core.add
    monkeypatch.setattr(core, "add", lambda new: (tenants.append(new.tenant), add(new)))
    client.completions.create(model="a", prompt="x", max_tokens=1, user="ann")
    client.embeddings.create(model=NAME, input="x", user="bob")
    client.completions.create(model=NAME, prompt="x", max_tokens=1)
    assert tenants == ["ann", "bob", ""]
