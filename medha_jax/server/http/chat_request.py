"""`POST /v1/chat/completions`: a conversation in OpenAI's form, as a request of `medha.v1`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from medha_jax.chat import ReasoningFormat, ToolFormat
from medha_jax.protos import inference_pb2 as pb
from medha_jax.server.http.completion_request import Asked, check_model, read_count, set_logprobs
from medha_jax.server.http.errors import FieldRefusal
from medha_jax.server.http.json_fields import Fields, checked_text, json_text
from medha_jax.server.http.settings_fields import read_settings, read_streaming
from medha_jax.server.http.tool_choice import read_tool_choice
from medha_jax.server.request_parser import RequestParser

_NO_AUDIO = "answers are text here"


@dataclass(frozen=True)
class AskedChat(Asked):
    """What a chat request asks, beside what every request does.

    Args:
        prompt: the text that the template made.
        opening: what stands behind it, and belongs to the output: the beginning of a call that must come.
        tools: how calls are written; None if none are looked for.
        functions: names of the functions that may be called.
        one_call: only the first call counts.
        reasoning: the marks of reasoning, which is told apart from content; None if it is not.
        hidden: special tokens that the text has for the sake of calls, and that the client is not shown.
    """

    prompt: str = ""
    opening: str = ""
    tools: ToolFormat | None = None
    functions: tuple[str, ...] = ()
    one_call: bool = False
    reasoning: ReasoningFormat | None = None
    hidden: frozenset[str] = frozenset()


def read_chat(given: Any, headers: Mapping[str, str], requests: RequestParser) -> AskedChat:
    """Read a request; `requests` knows the model and its template.

    Raises:
        Refusal: a field is unknown or wrong, or the template refuses the messages.
    """
    fields = Fields(given)
    check_model(fields, requests.model.name)
    chat = read_conversation(fields)
    choice = read_tool_choice(fields, chat.tools)
    streaming = read_streaming(fields)
    settings = read_settings(fields, headers, None)
    settings.progress = streaming.streamed
    top = _logprobs(fields, settings)
    n = read_count(fields)
    parallel, reasoning = fields.switch("parallel_tool_calls"), fields.switch("include_reasoning")
    fields.only("modalities", (["text"],), _NO_AUDIO)
    fields.only("audio", (), _NO_AUDIO)
    fields.only("functions", ([],), "give tools")
    fields.only("function_call", ("none",), "give tool_choice")
    fields.only("web_search_options", (), "the web is not searched here")
    fields.only("prediction", (), "outputs are not predicted here")
    fields.only("echo", (False,), "prompts of chats are not repeated")
    fields.ignore("verbosity")
    fields.end()
    template, special = requests.model.chat_template, requests.model.tokenizer.special_tokens
    tools = ToolFormat.of(template) if choice.calls else None
    opening = choice.opening(tools)
    if tools is not None and opening:
        if settings.HasField("structured"):
            raise FieldRefusal("tool_choice", "a call must come, so the output cannot follow another form")
        if (rest := choice.rest(tools)) is not None:
            settings.structured.CopyFrom(rest)
    hidden = frozenset(special if tools is not None and tools.needs_special_tokens(special) else ())
    if hidden:
        settings.sampling.skip_special_tokens = False
    request = requests.as_text(pb.GenerateRequest(chat=chat, settings=settings, n=n))
    prompt = request.text
    request.text = prompt + opening
    return AskedChat(
        id=settings.request_id,
        requests=[request],
        prompts=1,
        streaming=streaming,
        n=n,
        logprobs=top,
        ignored=tuple(fields.ignored),
        prompt=prompt,
        opening=opening,
        tools=tools,
        functions=tuple(choice.functions),
        one_call=parallel is False,
        reasoning=None if reasoning is False or opening else ReasoningFormat.of(template),
        hidden=hidden,
    )


def read_conversation(fields: Fields) -> pb.Chat:
    """Read messages, tools and what the template is given beside them."""
    chat = pb.Chat()
    messages = fields.take("messages")
    if not isinstance(messages, list):
        fields.wrong("messages", messages, "a list of messages")
    for index, message in enumerate(messages):
        _message(chat.messages.add(), Fields(message, f"messages[{index}]"))
    for index, tool in enumerate(_list(fields, "tools")):
        if not isinstance(tool, dict):
            fields.wrong(f"tools[{index}]", tool, "an object with type and function")
        chat.tools.append(json_text(f"tools[{index}]", tool))
    variables = fields.take("chat_template_kwargs")
    if variables is not None and not isinstance(variables, dict):
        fields.wrong("chat_template_kwargs", variables, "an object")
    if (effort := fields.text("reasoning_effort")) is not None:
        variables = {"reasoning_effort": effort} | (variables or {})
    if variables:
        chat.variables = json_text("chat_template_kwargs", variables)
    for name in ("add_generation_prompt", "continue_final_message"):
        if (stated := fields.switch(name)) is not None:
            setattr(chat, name, stated)
    fields.only("add_special_tokens", (False,), "the template has all special tokens")
    fields.only("chat_template", (), "the model's own template is used")
    return chat


def _message(message: pb.ChatMessage, fields: Fields) -> None:
    for name in ("role", "reasoning_content", "name", "tool_call_id"):
        if (text := fields.text(name)) is not None:
            _set(message, name, text, fields)
    if message.role != "assistant":
        fields.only("tool_calls", ([],), "only an assistant's message has calls")
    fields.only("refusal", ("",), "messages have content")
    fields.only("audio", (), _NO_AUDIO)
    fields.only("function_call", (), "give tool_calls")
    fields.only("annotations", ([],), "messages have content")
    if (content := fields.take("content")) is not None:
        _set(message, "content", content if isinstance(content, str) else _joined(content, fields), fields)
    for call in _objects(fields, "tool_calls"):
        _call(message.tool_calls.add(), call)
    fields.end()


def _call(message: pb.ChatToolCall, fields: Fields) -> None:
    if (call_id := fields.text("id")) is not None:
        _set(message, "id", call_id, fields)
    fields.only("type", ("function",), "only functions are called")
    fields.ignore("index")  # of a delta that a client has kept
    function = fields.inner("function")
    if function is None:
        fields.wrong("function", None, "an object with name and arguments")
    _set(message, "name", function.text("name") or "", function)
    arguments = function.take("arguments")
    if isinstance(arguments, dict):
        arguments = json_text(f"{function.where}.arguments", arguments)
    elif arguments is not None and not isinstance(arguments, str):
        function.wrong("arguments", arguments, "the JSON text of an object")
    _set(message, "arguments", arguments or "", function)
    function.end()
    fields.end()


def _joined(parts: Any, fields: Fields) -> str:
    """The text of a content in parts; parts begin new lines, as in other servers."""
    if not isinstance(parts, list):
        fields.wrong("content", parts, "a text, or a list of parts of the type text")
    texts = list[str]()
    for index, part in enumerate(parts):
        inner = Fields(part, f"{fields.where}.content[{index}]")
        inner.only("type", ("text",), "this model reads text")
        if (text := inner.text("text")) is None:
            inner.wrong("text", None, "a text")
        inner.end()
        texts.append(text)
    return "\n".join(texts)


def _objects(fields: Fields, name: str) -> list[Fields]:
    """A list of objects; empty without one."""
    return [Fields(one, f"{fields.where}.{name}[{index}]") for index, one in enumerate(_list(fields, name))]


def _list(fields: Fields, name: str) -> list[Any]:
    value = fields.take(name)
    if value is not None and not isinstance(value, list):
        fields.wrong(name, value, "a list of objects")
    return value or []


def _set(message: pb.ChatMessage | pb.ChatToolCall, name: str, text: str, fields: Fields) -> None:
    setattr(message, name, checked_text(f"{fields.where}.{name}", text))


def _logprobs(fields: Fields, settings: pb.GenerateSettings) -> int | None:
    """Read `logprobs` and `top_logprobs`; the count, None for none."""
    wanted, top = fields.switch("logprobs"), fields.integer("top_logprobs")
    if not wanted:
        if top:
            raise FieldRefusal("top_logprobs", "top_logprobs is for requests with logprobs; set logprobs to true")
        return None
    set_logprobs(settings, "top_logprobs", top or 0)
    return top or 0
