"""Conversations: a model's chat template, and what of its output is content, reasoning or a call. No JAX."""

from medha_jax.chat.chat_template import ChatTemplate
from medha_jax.chat.conversation import json_object
from medha_jax.chat.errors import ChatError, ChatTemplateError
from medha_jax.chat.output_parser import OutputParser
from medha_jax.chat.output_pieces import ChatPiece, ContentPiece, ReasoningPiece, ToolCallArguments, ToolCallStart
from medha_jax.chat.tool_formats import ReasoningFormat, ToolFormat

__all__ = [
    "ChatError",
    "ChatPiece",
    "ChatTemplate",
    "ChatTemplateError",
    "ContentPiece",
    "OutputParser",
    "ReasoningFormat",
    "ReasoningPiece",
    "ToolCallArguments",
    "ToolCallStart",
    "ToolFormat",
    "json_object",
]
