import json

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from app.engine.chat_template import compile_template
from app.engine.errors import InvalidRequest, ModelNotFound
from app.engine.tokenizer import Tokenizer
from tests.engine import tiny

MESSAGES = [{"role": "system", "content": "要简短。"}, {"role": "user", "content": "Why?"}]
# As the Qwen2.5 models write it.
QWEN_TEMPLATE = """{%- if messages[0]['role'] == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- endif %}
{%- endfor %}
{%- if tools %}{{- tools | tojson }}{%- endif %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}"""


@pytest.fixture
def folder(tmp_path):
    tiny.train_tokenizer().save(str(tmp_path / "tokenizer.json"))
    return tmp_path


def load(folder, **config):
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return Tokenizer.load(folder)


@pytest.mark.parametrize("template", [tiny.CHAT_TEMPLATE, QWEN_TEMPLATE])
def test_chat_prompts_equal_those_of_transformers(folder, template):
    tokenizer = load(folder, chat_template=template)
    reference = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    reference.chat_template = template
    assert tokenizer.render_chat(MESSAGES) == reference.apply_chat_template(
        MESSAGES, tokenize=False, add_generation_prompt=True
    )
    assert tokenizer.apply_chat_template(MESSAGES) == list(
        reference.apply_chat_template(MESSAGES, add_generation_prompt=True)["input_ids"]
    )


def test_a_saved_tokenizer_reads_as_transformers_reads_it(folder, tmp_path):
    reference = PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"), eos_token="<|end|>"
    )
    reference.chat_template = tiny.CHAT_TEMPLATE
    reference.save_pretrained(tmp_path / "saved")
    tokenizer, again = (
        Tokenizer.load(tmp_path / "saved"),
        AutoTokenizer.from_pretrained(tmp_path / "saved"),
    )
    assert tokenizer.has_chat_template
    text = "Émile: 量子 🙂 pages"
    assert tokenizer.encode(text) == again.encode(text)
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_tools_reach_the_template_as_json(folder):
    tokenizer = load(folder, chat_template=QWEN_TEMPLATE)
    prompt = tokenizer.render_chat(MESSAGES, tools=[{"name": "查"}])
    assert '[{"name": "查"}]' in prompt


def test_the_default_of_several_templates_is_taken(folder):
    templates = [
        {"name": "tool_use", "template": "tools"},
        {"name": "default", "template": "plain"},
    ]
    assert load(folder, chat_template=templates).render_chat(MESSAGES) == "plain"


def test_a_model_without_a_template_gets_plain_turns(folder):
    assert load(folder).render_chat(MESSAGES) == "System: 要简短。\n\nUser: Why?\n\nAssistant:"


def test_a_template_may_refuse_messages(folder):
    tokenizer = load(folder, chat_template="{{ raise_exception('roles must alternate') }}")
    with pytest.raises(InvalidRequest, match="roles must alternate"):
        tokenizer.render_chat(MESSAGES)


@pytest.mark.parametrize(
    "attack",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{{ cycler.__init__.__globals__ }}",
    ],
)
def test_a_template_cannot_reach_out_of_its_sandbox(folder, attack):
    tokenizer = load(folder, chat_template=attack)
    with pytest.raises(InvalidRequest):
        tokenizer.render_chat(MESSAGES)


def test_a_template_that_does_not_compile_is_named():
    with pytest.raises(ModelNotFound, match="chat template"):
        compile_template("{% if %}")


def test_named_tokens_reach_the_template(folder):
    token = {"content": "<|end|>", "special": True}
    tokenizer = load(folder, eos_token=token, chat_template="{{ eos_token }}")
    assert tokenizer.render_chat(MESSAGES) == "<|end|>"


def test_a_folder_without_a_fast_tokenizer_is_refused(tmp_path):
    with pytest.raises(ModelNotFound, match=r"no tokenizer\.json"):
        Tokenizer.load(tmp_path)


def test_the_last_message_can_be_continued_as_transformers_does(folder):
    tokenizer = load(folder, chat_template=QWEN_TEMPLATE)
    reference = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    reference.chat_template = tiny.CHAT_TEMPLATE
    messages = [*MESSAGES, {"role": "assistant", "content": "Because of the"}]
    shown = tokenizer.render_chat(
        messages, chat_template=tiny.CHAT_TEMPLATE, continue_final_message=True
    )
    assert shown == reference.apply_chat_template(
        messages, tokenize=False, continue_final_message=True
    )


def test_a_given_template_and_its_variables_take_the_models_place(folder):
    tokenizer = load(folder, chat_template=QWEN_TEMPLATE)
    shown = tokenizer.render_chat(
        MESSAGES,
        chat_template="{{ messages[1].content }}{{ flag }}{{ messages | length }}",
        chat_template_kwargs={"flag": "!", "messages": "no message of the conversation"},
    )
    assert shown == "Why?!2"
    with pytest.raises(InvalidRequest, match="cannot be compiled"):
        tokenizer.render_chat(MESSAGES, chat_template="{% for %}")
