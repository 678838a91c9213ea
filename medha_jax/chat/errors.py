"""Errors of conversations and chat templates."""

from __future__ import annotations


class ChatError(ValueError):
    """What a client gave cannot be made into a prompt; the text tells the client what is wrong and what is allowed."""


class ChatTemplateError(ValueError):
    """A model directory's chat template cannot be used; the text names the file."""
