"""Conversations: a model's chat template, and what of its output is content, reasoning or a call. No JAX."""

from medha_jax.chat.chat_template import ChatTemplate
from medha_jax.chat.errors import ChatError, ChatTemplateError

__all__ = ["ChatError", "ChatTemplate", "ChatTemplateError"]
