"""Converts a message into an engine's request. Fields are checked here; the engine checks token ids."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from google.protobuf.message import DecodeError, Message

from medha_jax.chat import ChatError, ChatTemplate
from medha_jax.engine import GenerationRequest, OnDeadline, Slo, check_stops
from medha_jax.plan import InvalidRequestError, SamplingParams
from medha_jax.protos import inference_pb2 as pb
from medha_jax.server.chat_prompt import rendered
from medha_jax.server.refusal import invalid, never_fits
from medha_jax.server.settings import Limits
from medha_jax.text import Tokenizer, TokenizerError
from medha_jax.token_ids import IdArray, array_of

LEAST_TARGET_S = 1e-9  # smaller objectives mean the same: at once
LONGEST_ID = 128  # characters, of a request id and of a cache salt
ON_DEADLINE: dict[str, pb.OnDeadline] = {"continue": pb.ON_DEADLINE_CONTINUE, "drop": pb.ON_DEADLINE_DROP}
# optional numbers and switches of a request's sampling; they have the names of `SamplingParams`
_OPTIONAL = [
    field.name for field in pb.SamplingSettings.DESCRIPTOR.fields if field.has_presence and not field.message_type
]
M = TypeVar("M", bound=Message)


@dataclass(frozen=True)
class ServedModel:
    """The model that requests are checked against.

    Args:
        name: for clients.
        vocab: entries of its vocabulary.
        context: most tokens of prompt and output together.
        sampling: defaults for the sampling fields of a request.
        eos_ids: tokens that end a generation.
        chat_template: makes prompts of conversations; None for a model that has none.
    """

    name: str
    tokenizer: Tokenizer
    vocab: int
    context: int
    sampling: SamplingParams = field(default_factory=SamplingParams)
    eos_ids: tuple[int, ...] = ()
    chat_template: ChatTemplate | None = None


def parse(kind: type[M], data: bytes) -> M:
    """A message from its bytes.

    Raises:
        Refusal: the bytes are not a message of this kind.
    """
    try:
        return kind.FromString(data)
    except DecodeError:
        raise invalid(f"the {len(data)} bytes of the message are no {kind.DESCRIPTOR.full_name}") from None


class RequestParser:
    """Makes the engine's requests. Immutable, so any thread may use it."""

    def __init__(self, model: ServedModel, limits: Limits) -> None:
        self.model = model
        self._limits = limits

    @property
    def max_output(self) -> int:
        """Most output tokens of a request."""
        return min(self._limits.max_output or self.model.context, self.model.context - 1)

    def whole(self, message: pb.GenerateRequest, deadline_s: float | None, tenant: str) -> GenerationRequest:
        """The request of a tenant's Generate call; `deadline_s` is the call's, on the engine's clock.

        Raises:
            Refusal: a field is out of its range, or prompt and output do not fit the context.
        """
        message = self.as_text(message)
        kind = message.WhichOneof("prompt")
        if kind is None:
            raise invalid("the request has no prompt; give text, token_ids or chat")
        add_special = _add_special(message)
        if kind == "text":
            prompt: Sequence[int] = self.tokens(message.text, add_special is not False)
        elif add_special is None:
            prompt = message.token_ids.ids
        else:
            raise invalid("add_special_tokens is for a text; the prompt is token_ids")
        request = self._request(message.settings, prompt, deadline_s, tenant)
        return dataclasses.replace(request, n=message.n or 1)

    def as_text(self, message: pb.GenerateRequest) -> pb.GenerateRequest:
        """The same request with the text that the model's template makes of its chat, if it has one.

        A template's work is bounded, but may be much however short the message is.

        Raises:
            Refusal: the model has no template, or the chat cannot be made into a prompt.
        """
        if message.WhichOneof("prompt") != "chat":
            return message
        if message.HasField("add_special_tokens"):
            raise invalid("add_special_tokens is for a text; the prompt is a chat, whose template has its own tokens")
        text = self._chat_text(message.chat)
        return pb.GenerateRequest(text=text, settings=message.settings, add_special_tokens=False, n=message.n)

    def started(
        self, start: pb.GenerateStart, deadline_s: float | None, prompt: Sequence[int], tenant: str
    ) -> GenerationRequest:
        """The request of a GenerateStream call, from its first part and at least one token of the prompt.

        Raises:
            Refusal: as `whole`, for a prompt of the stated size.
        """
        if not 1 <= start.prompt_tokens < self.model.context:
            raise never_fits(
                f"prompt_tokens is {start.prompt_tokens}; allowed are 1 to {self.model.context - 1}, "
                "one less than the context"
            )
        return self._request(start.settings, prompt, deadline_s, tenant, start.prompt_tokens)

    def tokenized(self, message: pb.TokenizeRequest) -> IdArray:
        """The token ids of a Tokenize call; errors as in `tokens` and `as_text`."""
        if not message.HasField("chat"):
            return self.tokens(message.text, _add_special(message) is not False)
        if message.text or message.HasField("add_special_tokens"):
            raise invalid("give a text or a chat, and add_special_tokens with a text only")
        return self.tokens(self._chat_text(message.chat), False)

    def tokens(self, text: str, add_special: bool = True) -> IdArray:
        """Token ids of a text; the server's limits bound its size, and so the time.

        Raises:
            Refusal: the text is empty or too long, or has no tokens.
        """
        if not text:
            raise invalid("the text is empty; give at least one character")
        allowed = self._limits.text_bytes(self.model.context)
        size = len(text.encode("utf-8"))
        if size > allowed:
            raise never_fits(f"the text has {size} bytes; allowed are {allowed}; give the token ids of a longer prompt")
        try:
            ids = IdArray(array_of(self.model.tokenizer.encode(text, add_special)))
        except TokenizerError as error:
            raise invalid(str(error)) from None
        if not len(ids):
            raise invalid(f"the tokenizer makes no token of this text of {len(text)} characters")
        return ids

    def text(self, message: pb.GenerateRequest, sampling: SamplingParams) -> str:
        """The text of a call's prompt, which is no chat."""
        if message.WhichOneof("prompt") == "text":
            return message.text
        return self.text_of(message.token_ids.ids, sampling)

    def text_of(self, ids: Sequence[int], sampling: SamplingParams) -> str:
        """The text of token ids, with special tokens where a request's output has them."""
        return self.model.tokenizer.decode(list(ids), sampling.skip_special_tokens)

    def _chat_text(self, chat: pb.Chat) -> str:
        if self.model.chat_template is None:
            raise invalid("this model has no chat template; give a text or token_ids")
        try:
            return rendered(self.model.chat_template, chat)
        except ChatError as error:  # a template may say what stands in a message
            raise invalid(str(error), logged="the chat makes no prompt; the client was told why") from None

    def _request(
        self,
        settings: pb.GenerateSettings,
        prompt: Sequence[int],
        deadline_s: float | None,
        tenant: str,
        bound: int | None = None,
    ) -> GenerationRequest:
        try:
            sampling = self._sampling(settings.sampling, len(prompt) if bound is None else bound)
            request = GenerationRequest(
                prompt_ids=prompt,
                sampling=sampling,
                eos_ids=self.model.eos_ids,
                slo=_slo(settings.slo),
                deadline_s=deadline_s,
                on_deadline=_on_deadline(settings.on_deadline),
                tenant=tenant,
                cache_salt=_salt(settings.cache_salt),
                prompt_bound=bound,
                priority=settings.priority,
            )
        except InvalidRequestError as error:
            raise invalid(str(error)) from None
        return request

    def _sampling(self, stated: pb.SamplingSettings, prompt: int) -> SamplingParams:
        """Sampling settings for a prompt of `prompt` tokens; missing fields get the model's defaults."""
        values: dict[str, Any] = {name: getattr(stated, name) for name in _OPTIONAL if stated.HasField(name)}
        room = self.model.context - prompt
        if room < 1:
            raise never_fits(
                f"the prompt has {prompt} tokens; allowed are {self.model.context - 1}, one less than the context"
            )
        most = self.max_output
        wanted = values.setdefault("max_tokens", min(most, room))
        if wanted > most:
            raise invalid(f"max_tokens is {wanted}; allowed is [1, {most}]")
        if wanted > room:
            raise never_fits(
                f"prompt and output have {prompt} + {wanted} tokens; the context has {self.model.context}, "
                f"so max_tokens may be {room}"
            )
        if stated.HasField("allowed_token_ids"):
            values["allowed_token_ids"] = tuple(stated.allowed_token_ids.ids)
        sampling = dataclasses.replace(
            self.model.sampling,
            stop=tuple(stated.stop),
            stop_token_ids=tuple(stated.stop_token_ids),
            logit_bias=tuple(sorted(stated.logit_bias.items())),
            **values,
        )
        check_stops(sampling, self.model.tokenizer)
        return sampling


def request_id(settings: pb.GenerateSettings) -> str | None:
    """The client's id of the request; None without one.

    Raises:
        Refusal: the id is empty, too long or not visible ASCII.
    """
    if not settings.HasField("request_id"):
        return None
    name = settings.request_id
    if not (1 <= len(name) <= LONGEST_ID and all("!" <= letter <= "~" for letter in name)):
        raise invalid(f"request_id has {len(name)} characters; allowed are 1 to {LONGEST_ID} of visible ASCII")
    return name


def _add_special(message: pb.GenerateRequest | pb.TokenizeRequest) -> bool | None:
    return message.add_special_tokens if message.HasField("add_special_tokens") else None


def _slo(stated: pb.SloSettings) -> Slo:
    for name in ("ttft_ms", "tpot_ms"):
        value = getattr(stated, name)
        if stated.HasField(name) and not 0 < value < math.inf:
            raise invalid(f"slo.{name} is {value}; allowed are milliseconds above 0")
    return Slo(
        ttft_s=max(stated.ttft_ms / 1000, LEAST_TARGET_S) if stated.HasField("ttft_ms") else None,
        tpot_s=max(stated.tpot_ms / 1000, LEAST_TARGET_S) if stated.HasField("tpot_ms") else None,
    )


def _on_deadline(stated: int) -> OnDeadline:
    if stated not in pb.OnDeadline.values():
        names = ", ".join(pb.OnDeadline.keys())
        raise invalid(f"on_deadline is {stated}; allowed are {names}")
    return "drop" if stated == ON_DEADLINE["drop"] else "continue"


def _salt(stated: str) -> str:
    if len(stated) > LONGEST_ID:
        raise invalid(f"cache_salt has {len(stated)} characters; allowed are {LONGEST_ID}")
    return stated
