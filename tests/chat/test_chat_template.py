from __future__ import annotations

import json
import threading
from itertools import chain
from pathlib import Path
from typing import Any

import pytest

from medha_jax.chat import ChatError, ChatTemplate, ChatTemplateError
from tests.chat.conversations import TEMPLATES, conversations

USER = {"role": "user", "content": "hi"}
TOOL = {"type": "function", "function": {"name": "f"}}


def directory(path: Path, config: Any = None, files: dict[str, str] | None = None) -> Path:
    if config is not None:
        (path / "tokenizer_config.json").write_text(json.dumps(config))
    for name, text in (files or {}).items():
        (path / name).parent.mkdir(exist_ok=True)
        (path / name).write_text(text)
    return path


def named(**templates: str) -> dict[str, Any]:
    return {"chat_template": [{"name": name, "template": text} for name, text in templates.items()]}


ONE, TWO, FILE, MORE = (text + "{{ tools|length if tools }}" for text in ("one", "two", "file", "more"))
JINJA = "chat_template.jinja"
TOOL_USE, RAG = (f"additional_chat_templates/{name}.jinja" for name in ("tool_use", "rag"))


@pytest.mark.parametrize(
    ("config", "files", "plain", "with_tools"),
    [
        ({"chat_template": ONE}, {}, "one", "one"),
        (named(default=ONE), {}, "one", "one"),
        (named(default=ONE, tool_use=TWO), {}, "one", "two"),
        ({"chat_template": ONE}, {JINJA: FILE}, "file", "file"),
        (None, {JINJA: FILE}, "file", "file"),
        (named(default=ONE, tool_use=TWO), {JINJA: FILE, TOOL_USE: MORE}, "file", "more"),
        (named(default=ONE, tool_use=TWO), {JINJA: FILE}, "file", "file"),
        (None, {JINJA: FILE, RAG: MORE}, "file", "file"),
    ],
)
def test_templates_are_found_where_transformers_finds_them(
    tmp_path: Path, config: Any, files: dict[str, str], plain: str, with_tools: str
) -> None:
    template = ChatTemplate.from_directory(directory(tmp_path, config, files))
    assert template is not None
    assert template.render([USER]) == template.render([USER], []) == plain
    assert template.render([USER], [TOOL]) == with_tools + "1"
    assert plain in template.source and with_tools in template.source


def test_tools_that_a_template_does_not_take_are_refused() -> None:
    template = ChatTemplate({"default": "{{ messages[0].content }}"})
    assert template.render([USER], []) == "hi"
    with pytest.raises(ChatError, match="the model's chat template has no place for tools"):
        template.render([USER], [TOOL])


@pytest.mark.parametrize("config", [None, {}, {"chat_template": None}])
def test_a_directory_without_a_template_has_none(tmp_path: Path, config: Any) -> None:
    assert ChatTemplate.from_directory(directory(tmp_path, config)) is None


@pytest.mark.parametrize(
    ("config", "files", "said"),
    [
        ([], {}, "tokenizer_config.json holds a list; it must be a JSON object"),
        ({"chat_template": 5}, {}, "chat_template must be a text, or a list of objects with name"),
        ({"chat_template": [{"name": "default"}]}, {}, "chat_template must be a text, or a list of objects"),
        (
            {"chat_template": [{"name": "rag", "template": ""}]},
            {},
            "no template named default; there are: rag",
        ),
        (
            {"chat_template": "{% if %}"},
            {},
            "json: line 1 of the template default: Expected an expression",
        ),
        (None, {"chat_template.jinja": "\n{{ a|b }}"}, "line 2 of the template default: No filter named 'b'"),
        (None, {"additional_chat_templates/tool_use.jinja": "a"}, "no template named default; there are: tool_use"),
    ],
)
def test_what_cannot_be_used_is_named(tmp_path: Path, config: Any, files: dict[str, str], said: str) -> None:
    with pytest.raises(ChatTemplateError) as refused:
        ChatTemplate.from_directory(directory(tmp_path, config, files))
    assert said in str(refused.value) and str(tmp_path) in str(refused.value)


def test_a_file_that_is_no_text_is_named(tmp_path: Path) -> None:
    (tmp_path / "chat_template.jinja").write_bytes(b"\xff")
    with pytest.raises(ChatTemplateError, match="chat_template.jinja is not UTF-8 text"):
        ChatTemplate.from_directory(tmp_path)


def test_special_tokens_are_the_tokenizers_and_a_request_may_state_others(tmp_path: Path) -> None:
    source = "{{ bos_token }}{{ eos_token }}{{ pad_token }}{{ unk_token }}"
    config = {"bos_token": "<b>", "eos_token": {"content": "<e>"}, "pad_token": None, "chat_template": source}
    (tmp_path / "special_tokens_map.json").write_text('{"pad_token": {"content": "<p>"}, "bos_token": "<no>"}')
    template = ChatTemplate.from_directory(directory(tmp_path, config))
    assert template is not None
    assert template.render([USER]) == "<b><e><p>"
    assert template.render([USER], variables={"bos_token": "<x>"}) == "<x><e><p>"


def test_parts_are_joined_for_templates_that_take_a_text() -> None:
    parts = [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]
    plain = ChatTemplate({"default": "{% for m in messages %}{{ m.content + '!' }}{% endfor %}"})
    assert plain.render(parts) == "a\nb!"
    through = "{% for p in messages[0]['content'] %}<{{ p.text }}>{% endfor %}"
    assert ChatTemplate({"default": through}).render(parts) == "<a><b>"
    filtered = "{% for p in messages[0].content|selectattr('type', 'equalto', 'text') %}<{{ p.text }}>{% endfor %}"
    assert ChatTemplate({"default": filtered}).render(parts) == "<a><b>"


@pytest.mark.parametrize(
    ("source", "content", "text"),
    [
        ("<{{ messages[0].content }}>", "ab ", "<ab "),
        ("<{{ messages[0].content|trim }}>", "ab ", "<ab"),
        ("{% for p in messages[0].content %}<{{ p.text }}>{% endfor %}", [{"type": "text", "text": "ab"}], "<ab"),
    ],
)
def test_a_final_message_stays_open(source: str, content: Any, text: str) -> None:
    template = ChatTemplate({"default": source + "<end>"})
    messages = [{"role": "assistant", "content": content}]
    assert template.render(messages, add_generation_prompt=False, continue_final_message=True) == text


@pytest.mark.parametrize(
    ("source", "message", "said"),
    [
        ("{{ messages[0].content[:1] }}", {"content": "abc"}, "does not keep the last message as it is"),
        ("{{ messages[0].content|upper }}", {"content": "abc"}, "does not keep the last message as it is"),
        ("", {"tool_calls": [{"function": {"name": "f"}}]}, "the last message has no content to go on with"),
        ("{% for p in m.content %}{% endfor %}", {"content": []}, "the last message has no content to go on with"),
    ],
)
def test_a_final_message_that_cannot_stay_open_is_refused(source: str, message: dict[str, Any], said: str) -> None:
    with pytest.raises(ChatError, match=said):
        ChatTemplate({"default": source}).render(
            [{"role": "assistant", **message}], add_generation_prompt=False, continue_final_message=True
        )


def test_a_final_message_leaves_no_place_for_another() -> None:
    with pytest.raises(ChatError, match="ask for one of them"):
        ChatTemplate({"default": ""}).render([USER], continue_final_message=True)


def test_a_text_that_no_prompt_can_hold_is_refused() -> None:
    with pytest.raises(ChatError, match="cannot render these messages: UnicodeEncodeError"):
        ChatTemplate({"default": r"{{ '\ud800' }}"}).render([USER])


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("{{ {}[messages[0].content].a }}", "UndefinedError"),
        ("{{ messages[0].content.index('secret') }}", "ValueError"),
        ("{{ messages[0].content|float + [] }}", "unsupported operand type(s) for +: 'float' and 'list'"),
    ],
)
def test_what_a_conversation_holds_is_not_in_the_reason(source: str, reason: str) -> None:
    with pytest.raises(ChatError) as refused:
        ChatTemplate({"default": source}).render([{"role": "user", "content": "private"}])
    assert str(refused.value) == f"the chat template cannot render these messages: {reason}"


@pytest.mark.parametrize("name", sorted(TEMPLATES))
def test_long_conversations_have_enough_work(name: str) -> None:
    """Work is bounded by what is given; the families' templates need a small part of it, whatever the shape."""
    template = ChatTemplate({"default": TEMPLATES[name]}, {"bos_token": "<s>", "eos_token": "</s>"})
    answer = {"role": "assistant", "content": "a" * 10}
    turns = [({"role": "user", "content": f"q{number}"}, answer) for number in range(4000)]
    shapes: list[list[dict[str, Any]]] = [
        [*chain.from_iterable(turns), USER],
        [{"role": "user", "content": "word " * 400_000}],
        [{"role": "user", "content": "a" * 2000}, answer] * 200 + [USER],
    ]
    for messages in shapes:
        assert len(template.render(messages, [TOOL] * 20)) > sum(len(message["content"]) for message in messages)
    properties = {f"p{number}": {"type": "string", "description": "d" * 100} for number in range(200)}
    big = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": properties}}}
    assert len(template.render([USER], [big] * 10)) > 10 * len(json.dumps(properties))


def test_threads_share_a_template() -> None:
    template = ChatTemplate({"default": TEMPLATES["qwen3"]})
    given = [*conversations("qwen3", 8)]
    expected = [template.render(messages, tools) for messages, tools in given]
    found: list[Any] = [None] * len(given)

    def render(index: int) -> None:
        for _ in range(20):
            found[index] = template.render(*given[index])

    threads = [threading.Thread(target=render, args=(index,)) for index in range(len(given))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == expected
