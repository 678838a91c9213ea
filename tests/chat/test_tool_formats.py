from __future__ import annotations

import re

import pytest

from medha_jax.chat import ChatTemplate, ReasoningFormat, ToolFormat
from tests.chat.conversations import TEMPLATES

NAMES = {
    "llama3_json": ("llama3_json", '{"name": "f", "parameters": '),
    "mistral_v3": ("mistral", '[TOOL_CALLS] [{"name": "f", "arguments": '),
    "mistral_nemo": ("mistral", '[TOOL_CALLS][{"name": "f", "arguments": '),
    "mistral_v13": ("mistral", "[TOOL_CALLS]f[ARGS]"),
    "qwen2_5": ("hermes", '<tool_call>\n{"name": "f", "arguments": '),
    "qwen3": ("hermes", '<tool_call>\n{"name": "f", "arguments": '),
}


@pytest.mark.parametrize("template", sorted(TEMPLATES))
def test_a_family_is_known_by_its_template_and_opens_calls_as_that_writes_them(template: str) -> None:
    found = ToolFormat.of(ChatTemplate({"default": TEMPLATES[template]}))
    assert found is not None and found == ToolFormat.of(TEMPLATES[template])
    name, opening = NAMES[template]
    assert (found.name, found.opening("f")) == (name, opening)
    assert opening.startswith(found.opening())
    call = {"id": "abcdefghi", "type": "function", "function": {"name": "f", "arguments": {"a": 1}}}
    messages = [{"role": "user", "content": "q"}, {"role": "assistant", "tool_calls": [call]}]
    text = ChatTemplate({"default": TEMPLATES[template]}, {"eos_token": ""}).render(
        messages, add_generation_prompt=False
    )
    assert opening + '{"a": 1}' in text


@pytest.mark.parametrize(
    ("source", "family"),
    [
        (None, None),
        ("", "llama"),
        ("{{ messages }}", None),
        ("<tool_call><function=f>", None),
        ("<tool_call>f<arg_key>", None),
        ("<|start_header_id|> ipython", "qwen2"),
    ],
)
def test_other_templates_have_none(source: str | None, family: str | None) -> None:
    assert ToolFormat.of(source, family) is None


def test_markers_that_are_special_tokens_need_them() -> None:
    mistral, hermes = ToolFormat.of("[TOOL_CALLS]"), ToolFormat.of("<tool_call>")
    assert mistral is not None and hermes is not None
    assert mistral.needs_special_tokens({"[TOOL_CALLS]": 5, "</s>": 2})
    assert not mistral.needs_special_tokens({"</s>": 2})
    assert not hermes.needs_special_tokens({"<|im_end|>": 2})


def test_a_name_in_an_opening_is_written_as_json() -> None:
    hermes, newest = ToolFormat.of("<tool_call>"), ToolFormat.of("[TOOL_CALLS][ARGS]")
    assert hermes is not None and newest is not None
    assert hermes.opening('a"é') == '<tool_call>\n{"name": "a\\"é", "arguments": '
    assert newest.opening('a"é') == '[TOOL_CALLS]a"é[ARGS]'


def test_ids_are_as_the_families_want_them() -> None:
    mistral, hermes = ToolFormat.of("[TOOL_CALLS]"), ToolFormat.of("<tool_call>")
    assert mistral is not None and hermes is not None
    assert re.fullmatch("[A-Za-z0-9]{9}", mistral.new_id()) and mistral.new_id() != mistral.new_id()
    assert re.fullmatch("call_[0-9a-f]{24}", hermes.new_id()) and hermes.new_id() != hermes.new_id()


def test_reasoning_is_known_by_its_marks() -> None:
    qwen = ReasoningFormat.of(TEMPLATES["qwen3"])
    assert qwen == ReasoningFormat("<think>", "</think>")
    assert ReasoningFormat.of("[THINK] [/THINK]") == ReasoningFormat("[THINK]", "[/THINK]")
    assert ReasoningFormat.of(TEMPLATES["qwen2_5"]) is ReasoningFormat.of(None) is None
    assert qwen.begins_within("<|im_start|>assistant\n<think>\n")
    assert not qwen.begins_within("<|im_start|>assistant\n<think>\n\n</think>\n\n")
