"""A model's chat template: from its directory, and from messages to the text of a prompt."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from jinja2 import Environment, Template, nodes
from jinja2.exceptions import TemplateError, TemplateSyntaxError

from medha_jax.chat.conversation import conversation
from medha_jax.chat.counted_filters import LIMIT
from medha_jax.chat.errors import ChatError, ChatTemplateError
from medha_jax.chat.sandbox import ChatEnvironment, RefusedConversationError
from medha_jax.chat.work_limit import TooMuchWorkError, WorkLimit
from medha_jax.text.json_file import read_object

LONGEST_TEMPLATE = 2**18  # characters
LONGEST_REASON = 300  # characters of a template's sentence that a client is told
_SPECIAL = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_TYPES = ("NoneType", "Undefined", "bool", "dict", "float", "int", "list", "str", "tuple")
# put behind what a final message ends with; as in transformers, so that templates that trim meet the same text
_TAG = "CONTINUE_FINAL_MESSAGE_TAG "


class ChatTemplate:
    """Makes prompts of messages, as transformers' `apply_chat_template` does. Immutable, so threads may share it."""

    def __init__(self, sources: Mapping[str, str], special_tokens: Mapping[str, str] | None = None) -> None:
        """Compile templates.

        Args:
            sources: text of each template by its name: "default", and "tool_use" for requests with tools, if it is
                another one.
            special_tokens: texts of the tokens that templates name, such as "bos_token".

        Raises:
            ChatTemplateError: there is no default, a template is too long, or its syntax is wrong.
        """
        if "default" not in sources:
            names = ", ".join(sorted(sources)) or "none"
            raise ChatTemplateError(f"there is no template named default; there are: {names}")
        environment = ChatEnvironment()
        self._sources, self._special = dict(sources), dict(special_tokens or {})
        self._templates = {name: _compiled(environment, name, source) for name, source in sources.items()}
        trees = {name: environment.parse(source) for name, source in sources.items()}
        self._takes_parts = {name: _takes_parts(tree) for name, tree in trees.items()}
        self._takes_tools = {
            name: any(node.name == "tools" for node in tree.find_all(nodes.Name)) for name, tree in trees.items()
        }

    @classmethod
    def from_directory(cls, directory: Path) -> ChatTemplate | None:
        """Read the templates of a Hugging Face model directory; None if it has none.

        `chat_template.jinja` and `additional_chat_templates/*.jinja` replace what `tokenizer_config.json` says.

        Raises:
            ChatTemplateError: a file cannot be read, or a template cannot be used.
        """
        config_path = directory / "tokenizer_config.json"
        config = read_object(config_path, ChatTemplateError)
        named = read_object(directory / "special_tokens_map.json", ChatTemplateError)
        files = {"default": directory / "chat_template.jinja"}
        files |= {path.stem: path for path in sorted((directory / "additional_chat_templates").glob("*.jinja"))}
        sources = {name: _read(path) for name, path in files.items() if path.is_file()}
        where = str(directory)
        if not sources:
            sources, where = _stated(config_path, config.get("chat_template")), str(config_path)
        if not sources:
            return None
        special = {name: _content(config.get(name)) or _content(named.get(name)) for name in _SPECIAL}
        try:
            return cls(sources, {name: text for name, text in special.items() if text is not None})
        except ChatTemplateError as error:
            raise ChatTemplateError(f"{where}: {error}") from None

    @cached_property
    def source(self) -> str:
        """The text of all its templates."""
        return "\n".join(self._sources.values())

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        """The text of a prompt, with its special tokens: it is tokenized without adding any.

        Takes time and memory in proportion to what is given: each rendering has so much work, and no template more.

        Args:
            messages: in OpenAI's form: role, content (a text, or a list of parts of the type text), for an assistant
                `tool_calls` and `reasoning_content`, for a tool `tool_call_id`, and `name`. Arguments of calls are
                objects, or their JSON text, which becomes an object.
            tools: functions in OpenAI's form; none and an empty list mean the same.
            add_generation_prompt: end with what begins the assistant's next message.
            continue_final_message: leave the last message open, so that the model goes on with it.
            variables: what the template may read beside the messages, such as enable_thinking.

        Raises:
            ChatError: a field is not allowed, or the template refuses the messages, takes no tools or cannot render.
        """
        if add_generation_prompt and continue_final_message:
            raise ChatError("continue_final_message leaves no place for a generation prompt; ask for one of them")
        given = conversation(messages, tools, variables)
        name = "tool_use" if given.tools and "tool_use" in self._templates else "default"
        if given.tools and not self._takes_tools[name]:
            raise ChatError("the model's chat template has no place for tools")
        if not self._takes_parts[name]:
            for message in given.messages:
                if isinstance(parts := message.get("content"), list):
                    message["content"] = "\n".join(part["text"] for part in parts)
        final = _opened(given.messages) if continue_final_message else None
        names = {
            **self._special,
            "documents": None,
            **given.variables,
            "messages": given.messages,
            "tools": given.tools,
            "add_generation_prompt": add_generation_prompt,
            LIMIT: WorkLimit(given.weight + len(self._sources[name])),
        }
        text = self._rendered(name, names)
        return text if final is None else _cut(text, final)

    def _rendered(self, name: str, names: dict[str, Any]) -> str:
        try:
            text = "".join(self._templates[name].generate(names))
            text.encode("utf-8")  # a template's own literals may be anything
            return text
        except RefusedConversationError as refused:
            raise ChatError(f"the chat template refuses the messages: {_short(refused)}") from None
        except TooMuchWorkError as error:
            raise ChatError(f"the chat template cannot render this: {error}") from None
        except (TemplateError, TypeError) as error:
            raise _failed(_short(error) if _quotes_only(error, self._sources[name]) else type(error).__name__) from None
        except (ArithmeticError, AttributeError, LookupError, RecursionError, ValueError) as error:
            raise _failed(type(error).__name__) from None


def _failed(reason: str) -> ChatError:
    return ChatError(f"the chat template cannot render these messages: {reason}")


def _quotes_only(error: Exception, source: str) -> bool:
    """Whether an error's text names only types and what stands in the template, and so nothing of the conversation."""
    words = re.findall("['\"]([^'\"]*)['\"]", str(error))
    return all(word in source or word.removesuffix(" object") in _TYPES for word in words)


def _short(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= LONGEST_REASON else text[:LONGEST_REASON] + "..."


def _compiled(environment: Environment, name: str, source: str) -> Template:
    if len(source) > LONGEST_TEMPLATE:
        raise ChatTemplateError(f"the template {name} has {len(source)} characters; allowed are {LONGEST_TEMPLATE}")
    try:
        return environment.from_string(source)
    except TemplateSyntaxError as error:
        raise ChatTemplateError(f"line {error.lineno} of the template {name}: {_short(error)}") from None
    except (TemplateError, SyntaxError, RecursionError, MemoryError, ValueError, OverflowError) as error:
        raise ChatTemplateError(f"the template {name} cannot be compiled: {type(error).__name__}") from None


def _takes_parts(tree: nodes.Template) -> bool:
    """Whether a template goes through the parts of a content; one that does not gets a text."""
    for loop in tree.find_all(nodes.For):
        for node in (loop.iter, *loop.iter.find_all((nodes.Name, nodes.Getattr, nodes.Getitem))):
            if isinstance(node, nodes.Name) and node.name == "content":
                return True
            if isinstance(node, nodes.Getattr) and node.attr == "content":
                return True
            if isinstance(node, nodes.Getitem) and getattr(node.arg, "value", None) == "content":
                return True
    return False


def _opened(messages: list[dict[str, Any]]) -> str:
    """Mark where the last message ends; returns its text."""
    content = messages[-1].get("content")
    if isinstance(content, list) and content:
        final: str = content[-1]["text"]
        content[-1]["text"] += _TAG
    elif isinstance(content, str):
        final = content
        messages[-1]["content"] += _TAG
    else:
        raise ChatError("continue_final_message is set, but the last message has no content to go on with")
    return final


def _cut(text: str, final: str) -> str:
    """The text up to the mark."""
    at = text.rfind(_TAG.strip())
    if at < 0 or final.strip() not in text:
        raise ChatError("continue_final_message is set, but the chat template does not keep the last message as it is")
    return text[:at] if text.startswith(_TAG, at) else text[:at].rstrip()


def _read(path: Path) -> str:
    try:
        with path.open(encoding="utf-8", newline=None) as file:
            return file.read(LONGEST_TEMPLATE + 1)
    except UnicodeDecodeError:
        raise ChatTemplateError(f"{path} is not UTF-8 text") from None
    except OSError as error:
        raise ChatTemplateError(f"cannot read {path}: {error.strerror}") from None


def _stated(path: Path, value: Any) -> dict[str, str]:
    """The templates of `tokenizer_config.json`: one text, or a list of names and texts."""
    if value is None:
        return {}
    if isinstance(value, str):
        return {"default": value}
    found: dict[str, str] = {}
    for entry in value if isinstance(value, list) else [None]:
        name, text = (entry.get(key) if isinstance(entry, dict) else None for key in ("name", "template"))
        if not isinstance(name, str) or not isinstance(text, str):
            raise ChatTemplateError(
                f"{path}: chat_template must be a text, or a list of objects with name and template"
            )
        found[name] = text
    return found


def _content(value: Any) -> str | None:
    """The text of a token, which is stated alone or as an object with its `content`."""
    text = value.get("content") if isinstance(value, dict) else value
    return text if isinstance(text, str) else None
