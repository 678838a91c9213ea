"""Fields that completions and chat completions share, as `GenerateSettings` of `medha.v1`."""

from __future__ import annotations

import math
import uuid
from collections.abc import Mapping, MutableSequence
from dataclasses import dataclass

from medha_jax.protos import inference_pb2 as pb
from medha_jax.server.http.errors import FieldRefusal
from medha_jax.server.http.json_fields import Fields, checked_text, numbers_by_id
from medha_jax.server.http.structured_fields import read_structured
from medha_jax.server.refusal import Refusal
from medha_jax.server.request_parser import ON_DEADLINE, request_id

TTFT_HEADER, TPOT_HEADER = "x-slo-ttft-ms", "x-slo-tpot-ms"
DEADLINE_HEADER, ID_HEADER = "x-request-timeout-ms", "x-request-id"
# by their names in a request and in SamplingSettings
_NUMBERS = ("temperature", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty")
_INTEGERS = ("top_k", "seed", "min_tokens")
_SWITCHES = {
    "ignore_eos": "ignore_eos",
    "skip_special_tokens": "skip_special_tokens",
    "include_stop_str_in_output": "include_stop",
}


@dataclass(frozen=True)
class Streaming:
    """How an answer comes: as a stream or whole, and with which usage.

    Args:
        usage: a stream ends with the usage.
        continuous: each chunk has the usage so far.
        ids: choices have the ids of their tokens.
    """

    streamed: bool = False
    usage: bool = False
    continuous: bool = False
    ids: bool = False


def read_streaming(fields: Fields) -> Streaming:
    """Read `stream`, `stream_options` and `return_token_ids`."""
    streamed, options = bool(fields.switch("stream")), fields.inner("stream_options")
    usage = continuous = False
    if options is not None:
        if not streamed:
            raise FieldRefusal("stream_options", "stream_options is for streams; set stream to true")
        usage, continuous = bool(options.switch("include_usage")), bool(options.switch("continuous_usage_stats"))
        options.only("include_obfuscation", (False,), "chunks are not padded here")
        options.end()
    return Streaming(streamed, usage, continuous, bool(fields.switch("return_token_ids")))


def read_settings(fields: Fields, headers: Mapping[str, str], most: int | None) -> pb.GenerateSettings:
    """Read what a request says of sampling, objectives and scheduling.

    Args:
        fields: of the request; those that are read are taken out.
        headers: of the request.
        most: output tokens where the request states none; None leaves that to the server.
    """
    settings = pb.GenerateSettings(sampling=_sampling(fields, most))
    _set(settings, "priority", fields.integer("priority"))
    _set(settings, "cache_salt", fields.text("cache_salt"))
    stated = fields.text("request_id")
    _set(settings, "request_id", headers.get(ID_HEADER, uuid.uuid4().hex) if stated is None else stated)
    try:
        request_id(settings)
    except Refusal as refusal:
        raise FieldRefusal("request_id", refusal.message) from None
    if (action := fields.text("on_deadline")) is not None:
        if action not in ON_DEADLINE:
            fields.wrong("on_deadline", action, " or ".join(ON_DEADLINE))
        settings.on_deadline = ON_DEADLINE[action]
    if (structured := read_structured(fields)) is not None:
        settings.structured.CopyFrom(structured)
    for header, name in ((TTFT_HEADER, "ttft_ms"), (TPOT_HEADER, "tpot_ms")):
        if (value := milliseconds(headers, header)) is not None:
            setattr(settings.slo, name, value)
    fields.ignore("user", "metadata", "service_tier", "safety_identifier", "prompt_cache_key")
    fields.only("store", (False,), "nothing is stored here")
    return settings


def milliseconds(headers: Mapping[str, str], name: str) -> float | None:
    """A header's milliseconds; None without it."""
    if (stated := headers.get(name)) is None:
        return None
    try:
        value = float(stated)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise FieldRefusal(name, f"{name} is {stated[:32]!r}; allowed are milliseconds above 0")
    return value


def _sampling(fields: Fields, most: int | None) -> pb.SamplingSettings:
    sampling = pb.SamplingSettings()
    for name in _NUMBERS:
        _set(sampling, name, fields.number(name))
    for name in _INTEGERS:
        _set(sampling, name, fields.integer(name))
    for name, meant in _SWITCHES.items():
        _set(sampling, meant, fields.switch(name))
    _set(sampling, "max_tokens", _output_tokens(fields, most))
    sampling.stop.extend(checked_text("stop", text) for text in fields.texts("stop") or ())
    _fill(sampling.stop_token_ids, "stop_token_ids", fields.integers("stop_token_ids") or [])
    if (allowed := fields.integers("allowed_token_ids")) is not None:
        sampling.allowed_token_ids.SetInParent()
        _fill(sampling.allowed_token_ids.ids, "allowed_token_ids", allowed)
    for token_id, bias in numbers_by_id(fields, "logit_bias").items():
        if token_id >= 2**32:
            raise FieldRefusal("logit_bias", f"logit_bias has the token id {token_id}, which no vocabulary has")
        sampling.logit_bias[token_id] = bias
    fields.only("spaces_between_special_tokens", (True,), "special tokens have a text as the tokenizer gives it")
    fields.only("use_beam_search", (False,), "beams are not searched here")
    fields.only("length_penalty", (1, 1.0), "beams are not searched here")
    return sampling


def _output_tokens(fields: Fields, most: int | None) -> int | None:
    names = ("max_completion_tokens", "max_tokens")
    stated = {name: value for name in names if (value := fields.integer(name)) is not None}
    if len(set(stated.values())) > 1:
        both = " and ".join(f"{name} is {value}" for name, value in stated.items())
        raise FieldRefusal("max_tokens", f"{both}; they mean the same, so give one of them")
    return next(iter(stated.values()), most)


def _set(message: pb.GenerateSettings | pb.SamplingSettings, name: str, value: object) -> None:
    """Set a field where a value is stated."""
    if value is None:
        return
    try:
        setattr(message, name, value)
    except (ValueError, UnicodeError):  # beyond the field's bits; lone surrogates
        shown = repr(value) if len(repr(value)) < 32 else f"{repr(value)[:32]}…"
        raise FieldRefusal(name, f"{name} is {shown}, which is out of every range") from None


def _fill(target: MutableSequence[int], name: str, ids: list[int]) -> None:
    try:
        target.extend(ids)
    except ValueError:
        raise FieldRefusal(name, f"{name} has an id that no vocabulary has; allowed are 0 to 4294967295") from None
