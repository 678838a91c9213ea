"""Chat completions of a real server: by the package of OpenAI, as it is, and beside the same conversation over gRPC."""

import json
import shutil
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import jsonschema
import openai
import pytest

from medha_jax.client import Chat, Client, Delta
from tests.server.conftest import CONFIG
from tests.server.processes import ServerProcess

TEMPLATES = Path(__file__).parents[2] / "chat" / "templates"
TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "naïve 😀?"},
]
LOOK = {
    "type": "function",
    "function": {
        "name": "look",
        "description": "Looks.",
        "parameters": {
            "type": "object",
            "properties": {"at": {"type": "string", "maxLength": 8}},
            "required": ["at"],
            "additionalProperties": False,
        },
    },
}
CONTEXT = 2048
SHORT: dict[str, Any] = {"model": "chatty", "temperature": 0, "max_tokens": 12}


@pytest.fixture(scope="module")
def chatty(model, serve_options, tmp_path_factory):
    """A server of a model with Qwen's template, and a context that holds what the template says of tools."""
    directory = tmp_path_factory.mktemp("models") / "chatty"
    shutil.copytree(model, directory)
    (directory / "config.json").write_text(json.dumps(CONFIG | {"max_position_embeddings": CONTEXT}))
    shutil.copy(TEMPLATES / "qwen2_5.jinja", directory / "chat_template.jinja")
    options, environment = serve_options
    options = [directory if option == model else option for option in options]
    with ServerProcess(*options, environment=environment) as started:
        yield started


@pytest.fixture(scope="module")
def url(chatty):
    return f"{chatty.url}/v1"


@pytest.fixture(scope="module")
def chats(url):
    with openai.OpenAI(base_url=url, api_key="none", max_retries=0, timeout=60) as client:
        yield client.chat.completions


@pytest.fixture(scope="module")
def grpc(chatty):
    with Client(chatty.address) as client:
        yield client


def over_grpc(client, prompt, **settings):
    """The text of an answer to messages, or to a `Chat`."""
    events = client.generate(prompt if isinstance(prompt, Chat) else Chat(prompt), **settings)
    return "".join(event.text for event in events if isinstance(event, Delta))


def test_a_chat_is_answered_as_over_grpc_whole_and_in_pieces(chats, grpc):
    wanted = over_grpc(grpc, TALK, temperature=0, max_tokens=12)
    whole = chats.create(messages=TALK, **SHORT)
    assert whole.object == "chat.completion" and whole.id.startswith("chatcmpl-")
    (choice,) = whole.choices
    assert choice.message.role == "assistant" and choice.message.content == wanted
    assert choice.finish_reason == "length" and whole.usage.completion_tokens == 12
    chunks = list(chats.create(messages=TALK, stream=True, stream_options={"include_usage": True}, **SHORT))
    told = [chunk.choices[0] for chunk in chunks if chunk.choices]
    assert "".join(one.delta.content or "" for one in told) == wanted
    assert told[0].delta.role == "assistant" and told[-1].finish_reason == "length"
    assert chunks[-1].usage == whole.usage and not chunks[-1].choices
    assert {chunk.object for chunk in chunks} == {"chat.completion.chunk"} and len({chunk.id for chunk in chunks}) == 1


def test_without_a_limit_a_chat_has_the_rest_of_the_context(chats):
    settings = {name: value for name, value in SHORT.items() if name != "max_tokens"}
    answer = chats.create(messages=TALK, extra_body={"ignore_eos": True}, **settings)
    assert answer.choices[0].finish_reason == "length" and answer.usage.total_tokens == CONTEXT


def test_parts_of_a_content_are_lines_and_several_outputs_have_their_seeds(chats, grpc):
    parts = [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]
    joined = [{"role": "user", "content": "a\nb"}]
    wanted = [over_grpc(grpc, joined, temperature=1.0, max_tokens=12, seed=seed) for seed in (5, 6)]
    answer = chats.create(messages=parts, n=2, seed=5, **SHORT | {"temperature": 1.0})
    assert [choice.message.content for choice in answer.choices] == wanted


def test_log_probabilities_have_the_tokens_of_the_text(chats):
    answer = chats.create(messages=TALK, logprobs=True, top_logprobs=3, **SHORT)
    entries = answer.choices[0].logprobs.content
    assert len(entries) == 12 and all(len(entry.top_logprobs) == 3 for entry in entries)
    assert all(entry.logprob == max(top.logprob for top in entry.top_logprobs) for entry in entries)  # greedy


def test_a_conversation_with_calls_and_answers_of_tools_renders_as_over_grpc(chats, grpc):
    call = {"id": "call_1", "type": "function", "function": {"name": "look", "arguments": '{"at": "é"}'}}
    talk = [
        *TALK,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "nothing"},
    ]
    wanted = over_grpc(grpc, Chat(talk, [LOOK]), temperature=0, max_tokens=12)
    answer = chats.create(messages=talk, tools=[LOOK], tool_choice="none", **SHORT)
    assert answer.choices[0].message.content == wanted


GO = {
    "type": "function",
    "function": {"name": "go", "parameters": {"properties": {"far": {"enum": [1, 22]}}, "additionalProperties": False}},
}
NAMED = {"type": "function", "function": {"name": "go"}}


@pytest.mark.parametrize("choice, tools", [("required", [LOOK]), (NAMED, [LOOK, GO]), ("required", [LOOK, GO])])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_call_that_must_come_comes_with_arguments_of_its_schema(chats, choice, tools, seed):
    settings = SHORT | {"temperature": 1.0, "max_tokens": 300}
    message = chats.create(messages=TALK, tools=tools, tool_choice=choice, seed=seed, **settings).choices[0].message
    (call,) = message.tool_calls
    functions = {tool["function"]["name"]: tool["function"] for tool in tools}
    assert call.type == "function" and call.id.startswith("call_") and not message.content
    assert choice == "required" or call.function.name == "go"
    arguments = json.loads(call.function.arguments)
    jsonschema.validate(arguments, functions[call.function.name]["parameters"])
    chunks = chats.create(messages=TALK, tools=tools, tool_choice=choice, seed=seed, stream=True, **settings)
    told = [one for chunk in chunks for one in chunk.choices[0].delta.tool_calls or ()]
    assert told[0].function.name == call.function.name
    assert "".join(one.function.arguments for one in told) == call.function.arguments


def test_an_output_follows_the_form_that_is_asked_for(chats):
    schema = {
        "type": "object",
        "properties": {"n": {"type": "integer"}},
        "required": ["n"],
        "additionalProperties": False,
    }
    form = {"type": "json_schema", "json_schema": {"name": "count", "strict": True, "schema": schema}}
    settings = SHORT | {"temperature": 1.0, "max_tokens": 300, "seed": 4}
    answer = chats.create(messages=TALK, response_format=form, **settings)
    assert answer.choices[0].finish_reason == "stop"
    jsonschema.validate(json.loads(answer.choices[0].message.content), schema)
    for stated, good in (
        ({"regex": "[ab]{3}"}, {x + y + z for x in "ab" for y in "ab" for z in "ab"}),
        ({"choice": ["yes", 'n\\o "é😀"']}, {"yes", 'n\\o "é😀"'}),
        ({"grammar": 'start: "x" | "yy"'}, {"x", "yy"}),
        ({"json": json.dumps({"const": 7})}, {"7"}),
    ):
        answer = chats.create(messages=TALK, extra_body={"structured_outputs": stated}, **settings)
        assert answer.choices[0].message.content in good


def test_the_package_s_own_message_can_be_sent_back(chats):
    answer = chats.create(messages=TALK, **SHORT)
    again = chats.create(messages=[*TALK, answer.choices[0].message, {"role": "user", "content": "and?"}], **SHORT)
    assert again.choices[0].message.content is not None


def test_template_variables_and_an_open_last_message(chats, grpc):
    talk = [*TALK, {"role": "assistant", "content": "It is"}]
    prompt = Chat(talk, continue_final_message=True, variables={"unused": 1})
    wanted = over_grpc(grpc, prompt, temperature=0, max_tokens=12)
    more = {"continue_final_message": True, "chat_template_kwargs": {"unused": 1}}
    assert chats.create(messages=talk, extra_body=more, **SHORT).choices[0].message.content == wanted


def test_the_tokens_of_a_chat_are_those_of_its_prompt(url, chats):
    body = json.dumps({"messages": TALK}).encode()
    with urllib.request.urlopen(url.removesuffix("/v1") + "/tokenize", body, timeout=30) as answer:
        count = json.load(answer)["count"]
    assert chats.create(messages=TALK, **SHORT).usage.prompt_tokens == count


MESSAGE = {"role": "user", "content": "a"}
WRONG = [
    ({}, "messages"),
    ({"messages": []}, "message"),
    ({"messages": "a"}, "messages"),
    ({"messages": ["a"]}, "messages[0]"),
    ({"messages": [{"role": "user"}]}, "content"),
    ({"messages": [{"role": "nobody", "content": "a"}]}, "role"),
    ({"messages": [MESSAGE | {"colour": "red"}]}, "messages[0].colour"),
    (
        {"messages": [MESSAGE | {"content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
        "messages[0].content[0]",
    ),
    ({"messages": [MESSAGE | {"content": "\ud800"}]}, "messages[0].content"),
    ({"messages": [MESSAGE | {"tool_calls": [{"id": "x"}]}]}, "tool_calls"),
    ({"messages": [MESSAGE], "tools": ["look"]}, "tools[0]"),
    ({"messages": [MESSAGE], "tools": [{"type": "function"}]}, "tool"),
    ({"messages": [MESSAGE], "tool_choice": "required"}, "tool_choice"),
    (
        {"messages": [MESSAGE], "tools": [LOOK], "tool_choice": {"type": "function", "function": {"name": "no"}}},
        "required",
    ),
    (
        {"messages": [MESSAGE], "tools": [LOOK], "tool_choice": "required", "response_format": {"type": "json_object"}},
        "form",
    ),
    ({"messages": [MESSAGE], "response_format": {"type": "xml"}}, "response_format.type"),
    ({"messages": [MESSAGE], "response_format": {"type": "json_schema"}}, "response_format.json_schema"),
    ({"messages": [MESSAGE], "response_format": {"type": "json_schema", "json_schema": {"schema": 7}}}, "schema"),
    ({"messages": [MESSAGE], "structured_outputs": {}}, "structured_outputs"),
    ({"messages": [MESSAGE], "structured_outputs": {"regex": "a", "json": {}}}, "structured_outputs"),
    ({"messages": [MESSAGE], "structured_outputs": {"choice": []}}, "choice"),
    ({"messages": [MESSAGE], "structured_outputs": {"regex": "("}}, "structured"),
    ({"messages": [MESSAGE], "top_logprobs": 2}, "logprobs"),
    ({"messages": [MESSAGE], "logprobs": True, "top_logprobs": 21}, "20"),
    ({"messages": [MESSAGE], "chat_template": "{{ 7 * 7 }}"}, "chat_template"),
    ({"messages": [MESSAGE], "audio": {"voice": "alloy"}}, "audio"),
    ({"messages": [MESSAGE], "functions": [{"name": "f"}]}, "tools"),
    ({"messages": [MESSAGE], "add_generation_prompt": True, "continue_final_message": True}, "continue_final_message"),
    ({"messages": [MESSAGE], "max_tokens": 3, "max_completion_tokens": 4}, "max_completion_tokens"),
]


@pytest.mark.parametrize("body, named", WRONG)
def test_what_is_wrong_has_a_status_and_a_sentence(url, body, named):
    request = urllib.request.Request(f"{url}/chat/completions", json.dumps(body).encode())
    with pytest.raises(urllib.error.HTTPError) as raised:
        urllib.request.urlopen(request, timeout=30)
    error = json.loads(raised.value.read())["error"]
    assert raised.value.code == 400 and error["type"] == "invalid_request_error" and named in error["message"]


def test_a_model_without_a_template_refuses_chats(model, serve_options, tmp_path):
    directory = tmp_path / "plain"
    shutil.copytree(model, directory)
    (directory / "chat_template.jinja").unlink()
    options, environment = serve_options
    options = [directory if option == model else option for option in options]
    with ServerProcess(*options, environment=environment) as plain:
        client = openai.OpenAI(base_url=f"{plain.url}/v1", api_key="none", max_retries=0, timeout=60)
        with client, pytest.raises(openai.BadRequestError, match="no chat template"):
            client.chat.completions.create(messages=TALK, **SHORT | {"model": "plain"})
