"""`POST /v1/completions`: a request in OpenAI's form, as requests of `medha.v1`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from grpc import StatusCode

from medha_jax.plan import MAX_LOGPROBS
from medha_jax.protos import inference_pb2 as pb
from medha_jax.server.http.errors import FieldRefusal
from medha_jax.server.http.json_fields import Fields, checked_text, is_integers
from medha_jax.server.http.settings_fields import Streaming, read_settings, read_streaming
from medha_jax.server.request_parser import LONGEST_ID, RequestParser

DEFAULT_TOKENS = 16  # of output, as in OpenAI's API
MOST_PROMPTS = 256  # of one request; each is a stream of its own


@dataclass(frozen=True)
class Asked:
    """What one HTTP request asks: prompts that are answered together.

    Args:
        id: of the answer; those of several requests are made of it.
        requests: one a prompt, with `n` outputs; who answers them takes them out.
        prompts: how many they are.
        streaming: how the answer comes.
        n: outputs of each prompt.
        logprobs: how many of the likeliest tokens each token has; None for no log-probabilities.
        echoed: where the prompts' tokens have log-probabilities, the first id of each prompt; they have none.
        ignored: fields that change nothing.
    """

    id: str
    requests: list[pb.GenerateRequest]
    prompts: int
    streaming: Streaming
    n: int
    logprobs: int | None = None
    echoed: tuple[int, ...] = ()
    ignored: tuple[str, ...] = ()


def read_completion(given: Any, headers: Mapping[str, str], requests: RequestParser) -> Asked:
    """Read a request; `requests` knows the model.

    Raises:
        Refusal: a field is unknown or wrong.
    """
    fields = Fields(given)
    check_model(fields, requests.model.name)
    prompts = _prompts(fields)
    streaming = read_streaming(fields)
    settings = read_settings(fields, headers, DEFAULT_TOKENS)
    echo, logprobs = bool(fields.switch("echo")), fields.integer("logprobs")
    settings.echo = echo
    settings.progress = streaming.streamed
    n = read_count(fields)
    fields.only("best_of", (1, n), "the best of more outputs is not chosen here; best_of must equal n")
    fields.only("suffix", ("",), "texts are not filled in here; leave it out")
    add_special = fields.switch("add_special_tokens")
    fields.end()
    if logprobs is not None:
        set_logprobs(settings, "logprobs", logprobs)
        if echo:
            settings.sampling.prompt_logprobs = logprobs
            prompts = [_as_ids(prompt, requests, add_special is not False) for prompt in prompts]
            add_special = None
    ids = _ids(settings.request_id, len(prompts))
    built = [_request(prompt, settings, n, add_special, one) for prompt, one in zip(prompts, ids, strict=True)]
    scored = settings.sampling.HasField("prompt_logprobs")
    first = tuple(int(prompt[0]) for prompt in prompts) if scored else ()
    return Asked(settings.request_id, built, len(built), streaming, n, logprobs, first, tuple(fields.ignored))


def check_model(fields: Fields, name: str) -> None:
    """Refuse a request for another model than the served one; a request that names none means it."""
    stated = fields.text("model")
    if stated is not None and stated != name:
        raise FieldRefusal("model", f"the model {stated[:128]!r} is not served; {name} is", StatusCode.NOT_FOUND)


def read_count(fields: Fields) -> int:
    """Read `n`, the outputs of each prompt."""
    n = fields.integer("n")
    n = 1 if n is None else n
    if not 1 <= n < 2**31:
        fields.wrong("n", n, "1 or more")
    return n


def set_logprobs(settings: pb.GenerateSettings, name: str, top: int) -> None:
    """Ask for log-probabilities, and so many of the likeliest tokens."""
    if not 0 <= top < 2**32:
        raise FieldRefusal(name, f"{name} is {top}; allowed is [0, {MAX_LOGPROBS}]")
    settings.sampling.logprobs = top


def _prompts(fields: Fields) -> list[str | list[int]]:
    """The prompts of a request: a text, ids, or a list of either."""
    value = fields.take("prompt")
    if isinstance(value, str):
        prompts: list[str | list[int]] = [value]
    elif is_integers(value) and value:
        prompts = [value]
    elif isinstance(value, list) and value and all(isinstance(one, str) or is_integers(one) for one in value):
        prompts = value
    else:
        fields.wrong("prompt", value, "a text, a list of token ids, or a list of texts or of lists of ids")
    if len(prompts) > MOST_PROMPTS:
        raise FieldRefusal("prompt", f"the request has {len(prompts)} prompts; allowed are {MOST_PROMPTS}")
    for prompt in prompts:
        if isinstance(prompt, str):
            checked_text("prompt", prompt)
        elif not prompt:
            fields.wrong("prompt", prompt, "at least one token id")
    return prompts


def _ids(stated: str, prompts: int) -> list[str]:
    """The id of each prompt: the request's, with the prompt's number if there are several."""
    if prompts == 1:
        return [stated]
    most = LONGEST_ID - len(f"-{prompts - 1}")
    if len(stated) > most:
        raise FieldRefusal(
            "request_id",
            f"request_id has {len(stated)} characters; allowed are {most} for {prompts} prompts, because each has its "
            "number behind it",
        )
    return [f"{stated}-{number}" for number in range(prompts)]


def _as_ids(prompt: str | list[int], requests: RequestParser, add_special: bool) -> list[int]:
    return list(requests.tokens(prompt, add_special)) if isinstance(prompt, str) else prompt


def _request(
    prompt: str | list[int], settings: pb.GenerateSettings, n: int, add_special: bool | None, request_id: str
) -> pb.GenerateRequest:
    """One of the requests."""
    request = pb.GenerateRequest(settings=settings, n=n)
    request.settings.request_id = request_id
    if add_special is not None:
        request.add_special_tokens = add_special
    if isinstance(prompt, str):
        request.text = prompt
        return request
    try:
        request.token_ids.ids.extend(prompt)
    except ValueError:
        raise FieldRefusal("prompt", "the prompt has a token id that no vocabulary has") from None
    return request
