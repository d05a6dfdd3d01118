"""The same prompts as transformers makes, from templates with all that real ones use."""

import json

import pytest
from transformers import PreTrainedTokenizerFast

from app.engine import InvalidRequest
from app.engine.chat_template import ChatTemplate, prepare_message
from tests.engine import tiny

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "find",
            "description": "Sucht <Städte> & mehr",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
        },
    }
]
CALLS = [
    {"id": "c1", "type": "function", "function": {"name": "find", "arguments": {"city": "北"}}}
]
TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Where is 北?"},
    {"role": "assistant", "content": "", "tool_calls": CALLS},
    {"role": "tool", "content": "here", "tool_call_id": "c1", "name": "find"},
    {"role": "assistant", "content": "<think>\nHm.\n</think>\n\n There. "},
    {"role": "user", "content": "And now?"},
]
DOCUMENTS = [{"title": "A", "text": "aa"}, {"title": "B", "text": "bb"}]
# Each in the manner of a family: what its templates do, in words of our own.
TEMPLATES = {
    "qwen": """{%- if tools %}
    {{- 'Tools:' }}
    {%- for tool in tools %}{{- "\\n" ~ (tool | tojson) }}{%- endfor %}
{%- endif %}
{%- set ns = namespace(multi_step=true, last=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step and message.role == "user" and message.content is string %}
        {%- set ns.multi_step = false %}{%- set ns.last = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- set content = message.content %}
    {%- if '</think>' in content %}
        {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
    {%- endif %}
    {{- '<|start|>' + message.role + '\\n' + content.strip() }}
    {%- if message.tool_calls %}
        {%- for call in message.tool_calls %}
            {%- if call.function %}{%- set call = call.function %}{%- endif %}
            {{- '<tool_call>' ~ call.name ~ (call.arguments | tojson) }}
        {%- endfor %}
    {%- endif %}
    {{- '<|end|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}""",
    "llama": """{{- bos_token }}
{%- if not date_string is defined %}
    {%- set date_string = strftime_now("%Y") %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- endif %}
{{- "Today: " + date_string + "\\n" + system_message }}
{%- if tools is not none %}
    {%- for t in tools %}{{- t | tojson(indent=4) }}{%- endfor %}
{%- endif %}
{%- for message in messages %}
    {%- if message.role == 'tool' or message.role == 'ipython' %}
        {{- message.content | tojson }}
    {%- elif 'tool_calls' in message and message.tool_calls %}
        {%- if not message.tool_calls|length == 1 %}
            {{- raise_exception("one call at a time") }}
        {%- endif %}
        {%- set call = message.tool_calls[0].function %}
        {{- '{"name": "' + call.name + '", "parameters": ' }}
        {{- call.arguments | tojson }}
        {{- "}" }}
    {%- else %}
        {{- '<|start|>' + message['role'] }}
        {{- message['content'] | trim + eos_token }}
    {%- endif %}
{%- endfor %}""",
    "mistral": """{%- set loop_messages = messages | selectattr("role", "ne", "system") | list %}
{%- for message in loop_messages if message["role"] != "tool" %}
    {%- if message.role == "user" %}
        {%- if loop.last and tools %}[AVAILABLE_TOOLS]
        {%- for tool in tools %}
            {%- for key, val in tool.function.items() if key != "return" %}
                {%- if val is string %}{{- key ~ '="' ~ val ~ '"' }}
                {%- else %}{{- key ~ '=' ~ val|tojson }}{%- endif %}
                {%- if not loop.last %}{{- ", " }}{%- endif %}
            {%- endfor %}
        {%- endfor %}
        {%- endif %}
        {{- "[INST] " + message.content + "[/INST]" }}
    {%- elif message.tool_calls is defined %}
        {%- for call in message.tool_calls %}
            {%- set out = call.function|tojson %}
            {{- "[TOOL_CALLS]" + out[:-1] + ', "id": "' + call.id + '"}' }}
        {%- endfor %}
    {%- else %}
        {% generation %}{{- message.content }}{% endgeneration %}
    {%- endif %}
{%- endfor %}""",
    "granite": """{%- macro say(role, text) -%}
    <|start|>{{ role }}: {{ text }}<|end|>
{%- endmacro -%}
{%- for document in documents or [] %}{{ say('document ' ~ document['title'], document['text']) }}
{%- endfor %}
{%- for message in messages %}
    {%- if message.role == 'tool' %}{% continue %}{% endif %}
    {%- if loop.index0 > 4 %}{% break %}{% endif %}
    {{- say(message['role'], message['content']) }}
{%- endfor %}""",
    "gemma": """{%- for message in messages -%}
    {%- set role = "model" if message['role'] == 'assistant' else message['role'] -%}
    {{ '<start>' + role + '\\n' }}
    {%- if message['content'] is string -%}{{ message['content'] | trim }}
    {%- elif message['content'] is iterable -%}
        {%- for item in message['content'] -%}{{ item['text'] }}{%- endfor -%}
    {%- endif -%}
    {{ '<end>\\n' }}
{%- endfor -%}""",
}
TOKENS = {"bos_token": "<|start|>", "eos_token": "<|end|>"}
OPTIONS = {"tools": None, "add_generation_prompt": True}


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    tiny.train_tokenizer().save(str(path))
    return PreTrainedTokenizerFast(tokenizer_file=str(path), **TOKENS)


def template(source):
    return ChatTemplate({"default": source}, TOKENS)


def render(source, messages=TALK, **options):
    return template(source).render(messages, {**OPTIONS, **options})


@pytest.mark.parametrize("family", TEMPLATES)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"tools": TOOLS},
        {"documents": DOCUMENTS},
        {"enable_thinking": False},
        {"add_generation_prompt": False, "date_string": "26 Jul 2024"},
    ],
    ids=["plain", "tools", "documents", "no-thinking", "no-generation-prompt"],
)
def test_prompts_equal_those_of_transformers(reference, family, options):
    wanted = {**OPTIONS, **options}
    expected = reference.apply_chat_template(
        TALK, chat_template=TEMPLATES[family], tokenize=False, **wanted
    )
    assert render(TEMPLATES[family], **wanted) == expected


@pytest.mark.parametrize("family", ["gemma", "granite"])
def test_a_message_is_continued_as_transformers_continues_it(reference, family):
    messages = [*TALK[:2], {"role": "assistant", "content": "It is in"}]
    expected = reference.apply_chat_template(
        messages,
        chat_template=TEMPLATES[family],
        tokenize=False,
        continue_final_message=True,
        add_generation_prompt=False,
    )
    options = {**OPTIONS, "add_generation_prompt": False}
    made = template(TEMPLATES[family]).render(messages, options, is_continued=True)
    assert made == expected
    assert made.endswith("It is in")


def test_a_message_that_the_template_rewrites_cannot_be_continued():
    source = "{% for m in messages %}{{ m.content | upper }}{% endfor %}"
    with pytest.raises(InvalidRequest, match="does not write the last message"):
        template(source).render([{"role": "user", "content": "abc"}], OPTIONS, is_continued=True)


def test_arguments_that_are_text_become_what_they_say():
    call = {"type": "function", "function": {"name": "find", "arguments": '{"city": "北"}'}}
    sent = [{"role": "assistant", "content": None, "tool_calls": [call]}]
    source = "{{ messages[0].tool_calls[0].function.arguments.city }}{{ messages[0].content }}"
    assert render(source, sent) == "北"
    assert call["function"]["arguments"] == '{"city": "北"}'


def test_arguments_that_are_no_json_are_refused():
    call = {"function": {"name": "find", "arguments": "{city"}}
    with pytest.raises(InvalidRequest, match="tool call find are no JSON"):
        prepare_message({"role": "assistant", "tool_calls": [call]})


def test_parts_of_text_are_joined():
    parts = [{"type": "text", "text": "a"}, {"type": "input_text", "text": "b"}]
    assert prepare_message({"role": "user", "content": parts})["content"] == "a\nb"


def test_other_parts_are_refused_by_name():
    parts = [{"type": "image_url", "image_url": {"url": "x"}}]
    with pytest.raises(InvalidRequest, match="part of type image_url"):
        prepare_message({"role": "user", "content": parts})


def test_templates_go_by_name():
    named = ChatTemplate({"default": "plain", "tool_use": "with tools"}, {})
    assert named.render(TALK, OPTIONS) == "plain"
    assert named.render(TALK, {**OPTIONS, "tools": TOOLS}) == "with tools"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{% for i in range(200000) %}x{% endfor %}", "Range too big"),
        (
            "{% set r = range(99999) %}{% for i in r %}{% for j in r %}{% endfor %}{% endfor %}",
            "more than 2000000 steps",
        ),
        ("{% for i in range(99999) %}{{ messages[0].content * 900 }}{% endfor %}", "16000000"),
        ("{{ 'x' * 10 ** 9 }}", "makes more than"),
        ("{{ 10 ** 10000 }}", "power of 10000"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "without end"),
        ("{{ messages[0].nothing.more }}", "refused"),
        ("{{ messages[0].content + 1 }}", "failed"),
        ("{{ 1 / 0 }}", "failed"),
    ],
)
def test_a_template_that_goes_wrong_or_too_far_is_stopped(source, message):
    with pytest.raises(InvalidRequest, match=message):
        render(source)


def test_a_template_may_reckon():
    assert render("{{ 86400 * 365 + 2 ** 10 }} {{ '-' * 3 }}") == "31537024 ---"


def test_json_is_written_as_transformers_writes_it(reference):
    source = "{{ tools | tojson(indent=2) }}{{ tools | tojson(separators=(',', ':')) }}"
    source += "{{ tools | tojson(ensure_ascii=True, sort_keys=True) }}"
    expected = reference.apply_chat_template(
        TALK, tools=TOOLS, chat_template=source, tokenize=False
    )
    assert render(source, tools=TOOLS) == expected
    assert json.dumps(TOOLS, indent=2, ensure_ascii=False) in expected
