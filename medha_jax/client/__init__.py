"""Clients of a medha-jax server: `Client`, and `AsyncClient` for asyncio. No JAX."""

from medha_jax.client.aio import AsyncClient
from medha_jax.client.answers import (
    Accepted,
    Delta,
    Event,
    Finished,
    LoadInfo,
    ModelInfo,
    PagePool,
    PromptLogprobs,
    PromptProgress,
    Timings,
    TokenLogprob,
    Usage,
)
from medha_jax.client.chat_message import Chat
from medha_jax.client.connection import Connection
from medha_jax.client.errors import ServerError
from medha_jax.client.message_fields import InvalidSettingError
from medha_jax.client.structured import Structured
from medha_jax.client.sync import Client
from medha_jax.client.whole_answer import Answer, AnswerBuilder, AnswerOutput

__all__ = [
    "Accepted",
    "Answer",
    "AnswerBuilder",
    "AnswerOutput",
    "AsyncClient",
    "Chat",
    "Client",
    "Connection",
    "Delta",
    "Event",
    "Finished",
    "InvalidSettingError",
    "LoadInfo",
    "ModelInfo",
    "PagePool",
    "PromptLogprobs",
    "PromptProgress",
    "ServerError",
    "Structured",
    "Timings",
    "TokenLogprob",
    "Usage",
]
