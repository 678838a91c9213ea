"""Deltas and messages of the assistant."""

from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medha_jax.chat import ChatTemplate, ReasoningFormat, ToolFormat
from medha_jax.protos import inference_pb2 as pb
from medha_jax.server.http.chat_form import ChatForm
from medha_jax.server.http.chat_request import AskedChat
from medha_jax.server.http.choices import News
from medha_jax.server.http.settings_fields import Streaming
from medha_jax.server.http.token_texts import Scored

SOURCE = "<tool_call></tool_call><think></think>{{ messages }}"
TEMPLATE = ChatTemplate({"default": SOURCE})
REASONING = ReasoningFormat.of(TEMPLATE)
TOKENIZER = SimpleNamespace(special_tokens={"<|im_end|>": 1}, decode=lambda ids, skip_special: f"<{ids[0]}>")
MODEL = SimpleNamespace(chat_template=TEMPLATE, tokenizer=TOKENIZER)
CALL = '<tool_call>\n{"name": "look", "arguments": {"at": [1, "é"]}}\n</tool_call>'
STOP = pb.GenerationFinished(reason=pb.FINISH_REASON_STOP)
LENGTH = pb.GenerationFinished(reason=pb.FINISH_REASON_LENGTH)


def form(**asked):
    tools = ToolFormat.of(TEMPLATE)
    given = {"tools": tools, "functions": ("look", "go"), "reasoning": REASONING} | asked
    return ChatForm(AskedChat("id", [], 1, Streaming(), 1, **given), MODEL)


def streamed(made, texts, finished=STOP):
    """The deltas of an output in pieces, and how its last one ended."""
    choices = [made.chunk(0, News(text)) for text in texts]
    choices.append(made.chunk(0, News(finished=finished)))
    return [choice for choice in choices if choice is not None]


def message_of(choices):
    """What a client makes of deltas."""
    message = {}
    for choice in choices:
        delta = choice["delta"]
        for name in ("role", "content", "reasoning_content"):
            if name in delta:
                message[name] = message.get(name, "") + delta[name]
        for call in delta.get("tool_calls", ()):
            kept = message.setdefault("tool_calls", {}).setdefault(call["index"], {"arguments": ""})
            kept |= {name: call[name] for name in ("id", "type") if name in call}
            kept["name"] = kept.get("name") or call["function"].get("name")
            kept["arguments"] += call["function"]["arguments"]
    return message


@given(st.data())
def test_deltas_join_to_the_whole_message_however_the_output_is_cut(data):
    text = data.draw(
        st.sampled_from(["", "plain", f"<think>why</think>\nSo: {CALL}\n{CALL}", "<tool_call>no call", CALL])
    )
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=8)))
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    choices = streamed(form(), pieces)
    joined, whole = message_of(choices), form().whole(0, News(text, finished=STOP))
    assert choices[0]["delta"]["role"] == "assistant" and all("role" not in one["delta"] for one in choices[1:])
    assert joined.get("content", "") == (whole["message"]["content"] or "")
    assert joined.get("reasoning_content") == whole["message"].get("reasoning_content")
    calls = [call["function"] for call in whole["message"].get("tool_calls", ())]
    told = joined.get("tool_calls", {}).values()
    assert [{name: call[name] for name in ("name", "arguments")} for call in told] == calls
    assert choices[-1]["finish_reason"] == whole["finish_reason"] == ("tool_calls" if calls else "stop")


def test_a_call_has_an_id_a_type_and_the_name_once():
    first, *rest = (choice for choice in streamed(form(), list(CALL)) if "tool_calls" in choice["delta"])
    (call,) = first["delta"]["tool_calls"]
    assert call["id"].startswith("call_") and call["type"] == "function" and call["function"]["name"] == "look"
    assert rest and all("id" not in one for later in rest for one in later["delta"]["tool_calls"])


def test_a_message_of_calls_alone_has_no_content():
    whole = form().whole(0, News(CALL, finished=STOP))
    assert whole["message"]["content"] is None and whole["message"]["tool_calls"][0]["function"]["name"] == "look"
    assert "content" not in message_of(streamed(form(), [CALL]))


def test_an_output_that_was_cut_ends_as_length_also_in_a_call():
    whole = form().whole(0, News(CALL[:-20], finished=LENGTH))
    assert whole["finish_reason"] == "length" and whole["message"]["tool_calls"]


@pytest.mark.parametrize("asked", [{"tools": None}, {"functions": ("other",)}])
def test_what_is_not_asked_for_is_content(asked):
    whole = form(**asked).whole(0, News(CALL, finished=STOP))
    assert whole["message"]["content"].strip() == CALL and whole["finish_reason"] == "stop"


def test_only_the_first_call_counts_if_calls_may_not_be_parallel():
    calls = form(one_call=True).whole(0, News(CALL + CALL, finished=STOP))["message"]["tool_calls"]
    assert len(calls) == 1 and len(message_of(streamed(form(one_call=True), [CALL, CALL]))["tool_calls"]) == 1


def test_an_opening_belongs_to_the_output():
    opening = ToolFormat.of(TEMPLATE).opening("look")
    asked = {"opening": opening, "reasoning": None}
    rest = '{"at": 1}}\n</tool_call>'
    (call,) = form(**asked).whole(0, News(rest, finished=STOP))["message"]["tool_calls"]
    assert call["function"] == {"name": "look", "arguments": '{"at": 1}'}
    told = message_of(streamed(form(**asked), list(rest)))["tool_calls"][0]
    assert (told["name"], told["arguments"]) == ("look", '{"at": 1}')


def test_reasoning_that_the_prompt_began_is_told_apart_unless_nobody_wants_it():
    prompt = {"prompt": "…<think>\n", "tools": None}
    message = form(**prompt).whole(0, News("why</think>so", finished=STOP))["message"]
    assert (message["reasoning_content"], message["content"]) == ("why", "so")
    message = form(**prompt, reasoning=None).whole(0, News("why</think>so", finished=STOP))["message"]
    assert message == {"role": "assistant", "content": "why</think>so"}


def test_log_probabilities_come_with_their_tokens_also_where_no_text_does():
    made = form(logprobs=1)
    told = made.chunk(0, News("<tool", [7], [Scored(7, -0.5, [(8, -0.1)])]))
    assert told["logprobs"]["content"][0]["token"] == "<7>"
    assert told["logprobs"]["content"][0]["top_logprobs"] == [{"token": "<8>", "logprob": -0.1, "bytes": [60, 56, 62]}]
    assert made.chunk(0, News("_call")) is None


def test_each_choice_has_a_parser_of_its_own():
    made = form()
    assert made.chunk(0, News("<tool"))["delta"] == {"role": "assistant", "content": ""}
    assert made.chunk(1, News("plain"))["delta"] == {"role": "assistant", "content": "plain"}
    assert made.chunk(0, News("s>", finished=STOP))["delta"]["content"] == "<tools>"


def test_without_tools_white_space_is_told_at_once():
    """No call can follow it. A client that waits for text would else take the second token for the first."""
    made = form(tools=None, functions=(), reasoning=None)
    told = [made.chunk(0, News(text))["delta"].get("content") for text in ("\n", "a", " ", "\n")]
    assert told == ["\n", "a", " ", "\n"]
