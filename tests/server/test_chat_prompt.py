from __future__ import annotations

from typing import Any

import pytest

from medha_jax.chat import ChatTemplate
from medha_jax.protos import inference_pb2 as pb
from medha_jax.server.refusal import Refusal
from medha_jax.server.request_parser import RequestParser, ServedModel
from medha_jax.server.settings import Limits
from medha_jax.text import Tokenizer
from tests.text.tiny_tokenizers import byte_level

BOS = 0
SOURCE = """{{ bos_token }}{% for m in messages %}[{{ m.role }}{{ '=' + m.name if m.name }}]{{ m.content }}
{%- for call in m.tool_calls or [] %}{{ call.id }}{{ call.function.name }}{{ call.function.arguments.a }}{% endfor %}
{%- if m.tool_call_id %}<{{ m.tool_call_id }}>{% endif %}
{%- if m.reasoning_content %}({{ m.reasoning_content }}){% endif %}{% endfor %}
{%- for tool in tools or [] %}|{{ tool.function.name }}{% endfor %}{{ shout or '' }}
{%- if add_generation_prompt %}[assistant]{% endif %}"""
TEMPLATE = ChatTemplate({"default": SOURCE}, {"bos_token": "<s>"})
PARSER = RequestParser(
    ServedModel("small", Tokenizer(byte_level()), 320, 512, chat_template=TEMPLATE), Limits(max_output=8)
)
HELLO = pb.ChatMessage(role="user", content="hello")


def text_of(**fields: Any) -> str:
    message = PARSER.as_text(pb.GenerateRequest(chat=pb.Chat(**fields)))
    assert message.WhichOneof("prompt") == "text" and not message.add_special_tokens
    return message.text


def test_every_field_of_a_chat_reaches_the_template() -> None:
    call = pb.ChatToolCall(id="c1", name="f", arguments='{"a": "é"}')
    messages = [
        pb.ChatMessage(role="user", content="hello", name="ann"),
        pb.ChatMessage(role="assistant", tool_calls=[call], reasoning_content="why"),
        pb.ChatMessage(role="tool", content="7", tool_call_id="c1"),
    ]
    tool = '{"type": "function", "function": {"name": "f"}}'
    text = text_of(messages=messages, tools=[tool], variables='{"shout": "!"}')
    assert text == "<s>[user=ann]hello[assistant]c1fé(why)[tool]7<c1>|f![assistant]"


@pytest.mark.parametrize(
    ("fields", "end"),
    [
        ({}, "hello[assistant]"),
        ({"add_generation_prompt": True}, "hello[assistant]"),
        ({"add_generation_prompt": False}, "hello"),
        ({"continue_final_message": True}, "hello"),
        ({"continue_final_message": True, "add_generation_prompt": False}, "hello"),
    ],
)
def test_a_prompt_ends_as_asked(fields: dict[str, bool], end: str) -> None:
    assert text_of(messages=[HELLO], **fields) == f"<s>[user]{end}"


def test_a_chat_gets_no_second_bos_and_keeps_the_rest_of_the_request() -> None:
    message = pb.GenerateRequest(chat=pb.Chat(messages=[HELLO]), n=2)
    message.settings.sampling.max_tokens = 3
    request = PARSER.whole(message, None, "")
    expected = PARSER.model.tokenizer.encode("<s>[user]hello[assistant]", add_special=False)
    assert [*request.prompt_ids] == expected
    assert expected.count(BOS) == 1 and expected[0] == BOS
    assert (request.n, request.sampling.max_tokens) == (2, 3)
    assert [*PARSER.tokenized(pb.TokenizeRequest(chat=message.chat))] == expected


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"messages": []}, "there are 0 messages; allowed are 1 to 8192"),
        (
            {"messages": [pb.ChatMessage(role="robot", content="x")]},
            "message 0 has the role 'robot'; allowed are system",
        ),
        ({"messages": [HELLO], "tools": ["{"]}, "tool 0: no valid JSON at character 1"),
        ({"messages": [HELLO], "tools": ["{}"]}, 'tool 0 must be {"type": "function"'),
        ({"messages": [HELLO], "variables": "[]"}, "the template's variables must be a JSON object"),
        ({"messages": [HELLO], "variables": '{"messages": []}'}, "a template's variable is named 'messages'"),
        ({"messages": [HELLO], "add_generation_prompt": True, "continue_final_message": True}, "ask for one of them"),
    ],
)
def test_what_makes_no_prompt_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(Refusal) as refused:
        PARSER.whole(pb.GenerateRequest(chat=pb.Chat(**fields)), None, "")
    assert refused.value.code.name == "INVALID_ARGUMENT"
    assert message in refused.value.message
    assert refused.value.logged == "the chat makes no prompt; the client was told why"


def test_fields_of_a_text_are_not_for_a_chat() -> None:
    chat = pb.Chat(messages=[HELLO])
    with pytest.raises(Refusal, match="add_special_tokens is for a text; the prompt is a chat"):
        PARSER.whole(pb.GenerateRequest(chat=chat, add_special_tokens=False), None, "")
    for other in (pb.TokenizeRequest(chat=chat, text="a"), pb.TokenizeRequest(chat=chat, add_special_tokens=True)):
        with pytest.raises(Refusal, match="give a text or a chat"):
            PARSER.tokenized(other)


def test_a_model_without_a_template_refuses_chats() -> None:
    plain = RequestParser(ServedModel("small", Tokenizer(byte_level()), 320, 512), Limits())
    with pytest.raises(Refusal, match="this model has no chat template; give a text or token_ids"):
        plain.whole(pb.GenerateRequest(chat=pb.Chat(messages=[HELLO])), None, "")
