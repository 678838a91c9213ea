from __future__ import annotations

import itertools
import json
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medha_jax.chat import (
    ChatPiece,
    ContentPiece,
    OutputParser,
    ReasoningFormat,
    ReasoningPiece,
    ToolCallArguments,
    ToolCallStart,
    ToolFormat,
)
from medha_jax.chat.output_pieces import joined
from tests.chat.conversations import TEMPLATES

THINK = ReasoningFormat("<think>", "</think>")
FORMATS = {name: ToolFormat.of(TEMPLATES[name]) for name in ("qwen3", "llama3_json", "mistral_v3")}


def pieces(name: str | None, *texts: str, **more: Any) -> list[ChatPiece]:
    numbers = itertools.count()
    tools = None if name is None else FORMATS[name]
    parser = OutputParser(tools, THINK, new_id=lambda: f"id{next(numbers)}", **more)
    found = [piece for text in texts for piece in parser.feed(text)]
    return joined([*found, *parser.end()])


def shown(found: list[ChatPiece]) -> list[Any]:
    """Content as text, reasoning in brackets, a call as its name and its arguments' text."""
    out: list[Any] = []
    for piece in found:
        match piece:
            case ContentPiece(text=text):
                out.append(text)
            case ReasoningPiece(text=text):
                out.append([text])
            case ToolCallStart(index=index, id=made, name=name):
                assert made == f"id{index}" and index == sum(isinstance(one, tuple) for one in out)
                out.append((name, ""))
            case ToolCallArguments(index=index, text=text):
                name, before = out[-1]
                assert index == sum(isinstance(one, tuple) for one in out) - 1
                out[-1] = (name, before + text)
    return out


HERMES = [
    ("hello", ["hello"]),
    ("  hello \n", ["  hello \n"]),
    ("\n", ["\n"]),
    ('<tool_call>\n{"name": "f", "arguments": {"a": [1, "}"]}}\n</tool_call>', [("f", '{"a": [1, "}"]}')]),
    ('I look.\n\n<tool_call>{"name":"f","arguments":{}}</tool_call>\n', ["I look.", ("f", "{}")]),
    (
        '<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>\n<tool_call>\n{"name": "g", "arguments": {"b": 2}}\n'
        "</tool_call>\n and more",
        [("f", "{}"), ("g", '{"b": 2}'), "\n and more"],
    ),
    ('<tool_call>{"arguments": {"x": {}}, "id": 5, "name": "f"}</tool_call>', [("f", '{"x": {}}')]),
    ('<tool_call>{"name": "f"}</tool_call>', [("f", "{}")]),
    ('<tool_call>{"name": "f", "parameters": {}}</tool_call>', [("f", "{}")]),
    ('<tool_call>{"name": "é\\n", "arguments": {"a": "b\nc"}}</tool_call>', [("é\n", '{"a": "b\\nc"}')]),
    # no calls: as they are
    ("a <tool_call> b", ["a <tool_call> b"]),
    ("<tool_call>", ["<tool_call>"]),
    ("<tool_ca", ["<tool_ca"]),
    ("</tool_call>", ["</tool_call>"]),
    ('<tool_call>{"name": "f", "argum', ['<tool_call>{"name": "f", "argum']),
    ('<tool_call>{"nome": "f"}</tool_call>', ['<tool_call>{"nome": "f"}</tool_call>']),
    (
        '<tool_call>{"name": "f", "arguments": "x"}</tool_call>',
        ['<tool_call>{"name": "f", "arguments": "x"}</tool_call>'],
    ),
    ('<tool_call>[{"name": "f"}]</tool_call>', ['<tool_call>[{"name": "f"}]</tool_call>']),
    ('<tool_call>{"arguments": {"a": 1}} ', ['<tool_call>{"arguments": {"a": 1}} ']),
    # calls that are not whole, or not ended
    ('<tool_call><tool_call>{"name":"f","arguments":{}}</tool_call>', ["<tool_call>", ("f", "{}")]),
    ('<tool_call>{"name":"f","arguments":{}}\n<tool_call>{"name":"g","arguments":{}}', [("f", "{}"), ("g", "{}")]),
    ('<tool_call>{"name":"f","arguments":{}} </tool_', [("f", "{}")]),
    ('<tool_call>{"name":"f","arguments":{}} </tool_x', [("f", "{}"), " </tool_x"]),
    ('<tool_call>{"name":"f","arguments":{"a": 1', [("f", '{"a": 1')]),
    ('<tool_call>{"name":"f","arguments":{"a": 1]}</tool_call>', [("f", '{"a": 1'), "]}</tool_call>"]),
    ('<tool_call>{"name":"f","arguments":{}}}</tool_call>', [("f", "{}"), "}</tool_call>"]),
    # reasoning
    ("<think>\nwhy\n\nso\n</think>\n\nhello", [["why\n\nso"], "hello"]),
    ("\n <think>why</think>hello", [["why"], "hello"]),
    ("<think>\n\n</think>\n\nhello", ["hello"]),
    ("<think>why\n", [["why\n"]]),
    ("<think>why</thi", [["why</thi"]]),
    ("<thi", ["<thi"]),
    ("a <think>b</think>", ["a <think>b</think>"]),
    ("<think>a</think>b<think>c</think>", [["a"], "b<think>c</think>"]),
    (
        '<think>\n<tool_call>{"name":"f","arguments":{}}</tool_call>\n</think>\n\n<tool_call>{"name":"g","arguments":{}}'
        "</tool_call>",
        [['<tool_call>{"name":"f","arguments":{}}</tool_call>'], ("g", "{}")],
    ),
]
LLAMA = [
    ("hello", ["hello"]),
    ('{"name": "f", "parameters": {"a": 1}}', [("f", '{"a": 1}')]),
    (' \n{"name": "f", "parameters": {}}', [("f", "{}")]),
    ('{"type": "function", "name": "f", "parameters": {}}', [("f", "{}")]),
    ('<|python_tag|>{"name": "f", "arguments": {}}', [("f", "{}")]),
    ('{"name": "f", "parameters": {}}; {"name": "g", "parameters": {}}', [("f", "{}"), ("g", "{}")]),
    ('{"name": "f", "parameters": {}}\n{"name": "g", "parameters": {}} ; ok', [("f", "{}"), ("g", "{}"), " ; ok"]),
    ('{"name": "f", "parameters": {}}; ', [("f", "{}")]),
    ('Sure: <|python_tag|> {"name": "f", "parameters": {}}', ["Sure:", ("f", "{}")]),
    # no calls
    ('{"name": "f"}', ['{"name": "f"}']),
    ('{"a": {"b": 1}}', ['{"a": {"b": 1}}']),
    (' {"a"', [' {"a"']),
    ("{", ["{"]),
    ('so {"name": "f", "parameters": {}}', ['so {"name": "f", "parameters": {}}']),
    ('<|python_tag|>f.call(a="b")', ['<|python_tag|>f.call(a="b")']),
    ('{"name": "f", "parameters": {}}; {"x": 1}', [("f", "{}"), '; {"x": 1}']),
    ('{"name": "f", "parameters": {}}; {"name": "g", "par', [("f", "{}"), '; {"name": "g", "par']),
    ('<think>a</think>\n{"name": "f", "parameters": {}}', [["a"], ("f", "{}")]),
]
MISTRAL = [
    ("hello", ["hello"]),
    ('[TOOL_CALLS] [{"name": "f", "arguments": {"a": 1}, "id": "abcdefghi"}]', [("f", '{"a": 1}')]),
    ('[TOOL_CALLS][{"name": "f", "arguments": {}}, {"name": "g", "arguments": {}}] ', [("f", "{}"), ("g", "{}")]),
    ('[TOOL_CALLS]f[ARGS]{"a": 1}', [("f", '{"a": 1}')]),
    ('[TOOL_CALLS]f{"a": 1}', [("f", '{"a": 1}')]),
    ('[TOOL_CALLS]f[CALL_ID]abcdefghi[ARGS]{"a": 1}', [("f", '{"a": 1}')]),
    ('text [TOOL_CALLS]f-1.é[ARGS] {"a": 1}\n[TOOL_CALLS]g[ARGS]{}', ["text", ("f-1.é", '{"a": 1}'), ("g", "{}")]),
    # no calls, or not whole
    ("[TOOL_CALLS]", ["[TOOL_CALLS]"]),
    ("[TOOL_CALLS] []", ["[TOOL_CALLS] []"]),
    ("[TOOL_CALLS] hello you", ["[TOOL_CALLS] hello you"]),
    ("[TOOL_CALLS]f[ARGS]", ["[TOOL_CALLS]f[ARGS]"]),
    ("[TOOL_CALLS]f[ARGS]null", ["[TOOL_CALLS]f[ARGS]null"]),
    ('[TOOL_CALLS]f[CALL_ID]![ARGS]{"a": 1}', ['[TOOL_CALLS]f[CALL_ID]![ARGS]{"a": 1}']),
    ("[TOOL_CALLS][ARGS]{}", ["[TOOL_CALLS][ARGS]{}"]),
    ("[TOOL_CALLS]" + "f" * 300 + "{}", ["[TOOL_CALLS]" + "f" * 300 + "{}"]),
    ("[TOOL_CALLS]foo[TOOL_CALLS]f[ARGS]{}", ["[TOOL_CALLS]foo", ("f", "{}")]),
    ('[TOOL_CALLS] [{"name": "f", "arguments": {}}, {"name": "g"', [("f", "{}"), ', {"name": "g"']),
    ('[TOOL_CALLS] [{"name": "f", "arguments": {}} {', [("f", "{}"), " {"]),
    ('[TOOL_CALLS] [{"name": "f", "arguments": {}}, ', [("f", "{}")]),
]
CASES = [("qwen3", *case) for case in HERMES] + [("llama3_json", *case) for case in LLAMA]
CASES += [("mistral_v3", *case) for case in MISTRAL]


@pytest.mark.parametrize(("name", "text", "expected"), CASES)
def test_an_output_is_told_apart(name: str, text: str, expected: list[Any]) -> None:
    assert shown(pieces(name, text)) == expected
    assert pieces(name, *text) == pieces(name, text)


FRAGMENTS = [
    "<tool_call>", "</tool_call>", "[TOOL_CALLS]", "[ARGS]", "[CALL_ID]", "<|python_tag|>", "<think>", "</think>",
    "<|eot|>",
    '{"name": "f", "arguments": {"a": "é"}}', '{"name": "g", "parameters": {}}', '{"name": "', '", "arguments": ', "{}",
    "[", "]", "{", "}", "<", " ", "\n", ";", ",", "f", "hello ", "東京",
]  # fmt: skip


@settings(max_examples=400)
@given(
    st.sampled_from([*FORMATS, None]),
    st.lists(st.sampled_from(FRAGMENTS) | st.text(max_size=3), max_size=12).map("".join),
    st.data(),
)
def test_any_cut_gives_the_same(name: str | None, text: str, data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=8)))
    cut = [text[start:end] for start, end in itertools.pairwise([0, *cuts, len(text)])]
    more = {"hidden": ["<|eot|>", "<|eo", "<|python_tag|>"], "prompt": data.draw(st.sampled_from(["", "a<think>\n"]))}
    whole = pieces(name, text, **more)
    assert pieces(name, *cut, **more) == whole
    assert pieces(name, *text, **more) == whole


@settings(max_examples=400)
@given(st.sampled_from([*FORMATS]), st.lists(st.sampled_from(FRAGMENTS), max_size=12))
def test_nothing_is_lost_or_doubled(name: str, fragments: list[str]) -> None:
    """Words between the parts of calls come once each and in order, wherever they belong."""
    text = "".join(f"{fragment}w{number};" for number, fragment in enumerate(fragments))
    found = shown(pieces(name, text))
    flat = "".join(one if isinstance(one, str) else "".join(one) for one in found)
    assert re.findall(r"w\d+;", flat) == re.findall(r"w\d+;", text)
    if "<think>" not in text and not any(isinstance(one, tuple) for one in found):
        assert found == ([text] if text else [])


@given(
    st.sampled_from(sorted(FORMATS)),
    st.text("abc_-019", min_size=1, max_size=9),
    st.dictionaries(st.text(max_size=4), st.text(max_size=5) | st.integers() | st.lists(st.booleans())),
)
def test_what_an_opening_begins_is_a_call(name: str, function: str, arguments: dict[str, Any]) -> None:
    tools = FORMATS[name]
    assert tools is not None
    text = json.dumps(arguments, ensure_ascii=False)
    closing = {"qwen3": "}\n</tool_call>", "llama3_json": "}", "mistral_v3": "}]"}[name]
    ((called, given_arguments),) = shown(pieces(name, tools.opening(function), text + closing))
    assert (called, json.loads(given_arguments)) == (function, arguments)


def test_arguments_come_as_they_are_written() -> None:
    parser = OutputParser(FORMATS["qwen3"], new_id=lambda: "x")
    assert parser.feed('<tool_call>\n{"name": "f", "argu') == []
    assert parser.feed('ments": {"a') == [ToolCallStart(0, "x", "f"), ToolCallArguments(0, '{"a')]
    assert parser.feed('": 1') == [ToolCallArguments(0, '": 1')]
    assert parser.feed("}}") == [ToolCallArguments(0, "}")]
    assert parser.feed("\n</tool_call>") == parser.end() == []


def test_text_is_held_only_while_it_may_become_a_mark() -> None:
    parser = OutputParser(FORMATS["qwen3"])
    assert parser.feed("a <to") == [ContentPiece("a")]
    assert parser.feed("y") == [ContentPiece(" <toy")]


def test_calls_of_other_functions_are_content() -> None:
    text = '{"name": "Bob", "parameters": {"age": 3}}'
    assert shown(pieces("llama3_json", text, functions=["f"])) == [text]
    assert shown(pieces("llama3_json", text, functions=["f", "Bob"])) == [("Bob", '{"age": 3}')]
    named = "[TOOL_CALLS]Bob[ARGS]{}"
    assert shown(pieces("mistral_v3", named, functions=["f"])) == [named]


def test_without_tools_calls_are_content() -> None:
    text = '<tool_call>{"name": "f", "arguments": {}}</tool_call>'
    assert shown(pieces(None, text)) == [text]


def test_reasoning_that_the_prompt_began_goes_on() -> None:
    assert shown(pieces("qwen3", "\nwhy\n</think>\n\nso", prompt="<|assistant|><think>\n")) == [["why"], "so"]
    assert shown(pieces("qwen3", "so", prompt="<think>\n\n</think>\n\n")) == ["so"]


def test_special_tokens_are_left_out_but_for_marks() -> None:
    hidden = ["<|eot|>", "<s>", "<tool_call>", "</think>"]
    text = '<think>a<|eot|>b</think>c<|eot|>d<s><tool_call>{"name": "f", "arguments": {}}</tool_call><s>'
    assert shown(pieces("qwen3", text, hidden=hidden)) == [["ab"], "cd", ("f", "{}")]


def test_a_long_output_takes_time_in_proportion() -> None:
    """Marks within marks and white space without end: each character is read once or twice."""
    for text in ("<tool_call>" * 5000, '<tool_call>{"a":"' * 3000, " " * 50_000, "<tool_call>{" * 5000, "\n<" * 20_000):
        parser = OutputParser(FORMATS["qwen3"])
        found = [piece for at in range(0, len(text), 50) for piece in parser.feed(text[at : at + 50])]
        assert "".join(piece.text for piece in joined([*found, *parser.end()])) == text
