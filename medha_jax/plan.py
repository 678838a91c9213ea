"""Data that travels between scheduler, engine and runtime: frozen, without behaviour, no JAX."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from medha_jax.config import setting, setting_of

if TYPE_CHECKING:
    import numpy as np

MAX_STOP_TOKENS = 16
MAX_STOP_STRINGS = 16
MAX_STOP_STRING_LENGTH = 256
MAX_LOGPROBS = 20
MAX_BIASED = 300
MAX_ALLOWED = 1024
MOST_BIAS = 100.0
MAX_SEED = 2**63 - 1
MAX_OUTPUTS = 8  # of a request
_SAMPLING, _END = "Sampling", "Where to end"


def mask_words(vocab: int) -> int:
    """Words of a mask of tokens: uint32 `[mask_words]`, in which bit i of word j is token 32 j + i."""
    return -(-vocab // 32)


class InvalidRequestError(ValueError):
    """A request has a value that is not allowed; the message says what is allowed."""


def output_seed(seed: int, index: int) -> int:
    """The seed of output `index` of a request with a seed: `seed + index`, and 0 follows the largest one."""
    return (seed + index) % (MAX_SEED + 1)


@dataclass(frozen=True)
class SamplingParams:
    """How tokens are chosen. By default they are sampled from the unchanged distribution until the context is full.

    `temperature` 0 is greedy; `top_k` 0 or -1 is off; `logprobs` None is off, and 0 gives only the chosen token's;
    `prompt_logprobs` is the same for the prompt's tokens, which only some runtimes are compiled for; with `seed` None
    the engine draws one for the request. Presence and frequency penalties look at generated tokens (OpenAI's
    definition), the repetition penalty at prompt and generated ones (CTRL, arXiv 1909.05858).
    `logit_bias` has pairs of a token id and what is added to its logit; `allowed_token_ids` None allows every token.

    Raises:
        InvalidRequestError: a value is out of its range.
    """

    temperature: float = setting(1.0, "0 always takes the likeliest token.", at_least=0, at_most=100, panel=_SAMPLING)
    top_k: int = setting(
        0, "Sample from the K likeliest tokens; 0 or -1: all.", at_least=-1, metavar="K", panel=_SAMPLING
    )
    top_p: float = setting(
        1.0,
        "Sample from the likeliest tokens that hold this probability; in (0, 1].",
        above=0,
        at_most=1,
        panel=_SAMPLING,
    )
    min_p: float = setting(
        0.0,
        "Drop tokens below this share of the likeliest one's probability; in [0, 1].",
        at_least=0,
        at_most=1,
        panel=_SAMPLING,
    )
    repetition_penalty: float = setting(
        1.0, "Above 1 avoids tokens seen before; in (0, 2].", above=0, at_most=2, panel=_SAMPLING
    )
    presence_penalty: float = setting(
        0.0, "Subtracted once from generated tokens; in [-2, 2].", at_least=-2, at_most=2, panel=_SAMPLING
    )
    frequency_penalty: float = setting(
        0.0, "Subtracted per earlier occurrence; in [-2, 2].", at_least=-2, at_most=2, panel=_SAMPLING
    )
    seed: int | None = setting(
        None,
        "Repeats a sampled generation. Default: drawn; --json tells it.",
        at_least=0,
        at_most=MAX_SEED,
        metavar="SEED",
        panel=_SAMPLING,
    )
    max_tokens: int | None = setting(None, "Default: until the context is full.", at_least=1, panel=_END)
    min_tokens: int = setting(0, "Do not stop before this many.", at_least=0, panel=_END)
    stop_token_ids: tuple[int, ...] = setting(
        (),
        "End at this token; repeatable.",
        at_least=0,
        at_most=2**31 - 1,
        option="stop_token_id",
        metavar="ID",
        panel=_END,
    )
    stop: tuple[str, ...] = setting((), "End at this text (cut off); repeatable.", metavar="TEXT", panel=_END)
    include_stop: bool = setting(False, "Show what ended the text.", switch=True, panel=_END)
    ignore_eos: bool = setting(False, "Go on after the model's own end.", switch=True, panel=_END)
    skip_special_tokens: bool = setting(True, "Leave special tokens out of the text.", panel=_END)
    logprobs: int | None = setting(
        None,
        "With --json: log-probabilities of the tokens and the N likeliest; 0 to 20.",
        at_least=0,
        at_most=MAX_LOGPROBS,
        panel=_SAMPLING,
    )
    prompt_logprobs: int | None = setting(
        None,
        "With --json: the same of the prompt's own tokens; 0 to 20.",
        at_least=0,
        at_most=MAX_LOGPROBS,
        panel=_SAMPLING,
    )
    logit_bias: tuple[tuple[int, float], ...] = setting(
        (), "Added to this token's logit; [-100, 100]; repeatable.", metavar="ID=BIAS", panel=_SAMPLING
    )
    allowed_token_ids: tuple[int, ...] | None = setting(
        None,
        "Sample from these tokens only; repeatable.",
        at_least=0,
        at_most=2**31 - 1,
        option="allowed_token_id",
        metavar="ID",
        panel=_SAMPLING,
    )

    def __post_init__(self) -> None:
        for declared in fields(self):
            stated, value = setting_of(declared), getattr(self, declared.name)
            if stated is not None and value is not None and not stated.allows(value):
                raise InvalidRequestError(f"{declared.name} is {value}; allowed is {stated.interval}")
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise InvalidRequestError(
                f"min_tokens is {self.min_tokens}; allowed is [0, {self.max_tokens}] (max_tokens)"
            )
        if len(self.stop_token_ids) > MAX_STOP_TOKENS:
            raise InvalidRequestError(f"{len(self.stop_token_ids)} stop token ids; allowed are {MAX_STOP_TOKENS}")
        if len(self.stop) > MAX_STOP_STRINGS:
            raise InvalidRequestError(f"{len(self.stop)} stop strings; allowed are {MAX_STOP_STRINGS}")
        if min(self.stop_token_ids, default=0) < 0:
            raise InvalidRequestError(f"stop token id {min(self.stop_token_ids)}; allowed are 0 and more")
        self._check_logit_bias()
        allowed = self.allowed_token_ids
        if allowed is not None and not 1 <= len(allowed) <= MAX_ALLOWED:
            raise InvalidRequestError(f"allowed_token_ids has {len(allowed)} ids; allowed are 1 to {MAX_ALLOWED}")
        if min(allowed or (0,)) < 0:
            raise InvalidRequestError(f"allowed_token_ids has {min(allowed or ())}; allowed are 0 and more")
        for text in self.stop:
            try:
                text.encode("utf-8")
            except UnicodeEncodeError:
                raise InvalidRequestError(
                    "a stop string is not valid Unicode (lone surrogates); give UTF-8 text"
                ) from None
            if not 1 <= len(text) <= MAX_STOP_STRING_LENGTH:
                raise InvalidRequestError(
                    f"a stop string has {len(text)} characters; allowed are 1 to {MAX_STOP_STRING_LENGTH}"
                )

    def _check_logit_bias(self) -> None:
        biased = {token for token, _ in self.logit_bias}
        if len(self.logit_bias) > MAX_BIASED:
            raise InvalidRequestError(f"logit_bias has {len(self.logit_bias)} entries; allowed are {MAX_BIASED}")
        if len(biased) < len(self.logit_bias):
            raise InvalidRequestError("logit_bias has two entries of one token id; give each id once")
        if min(biased, default=0) < 0:
            raise InvalidRequestError(f"logit_bias has token id {min(biased)}; allowed are 0 and more")
        for token, bias in self.logit_bias:
            if not -MOST_BIAS <= bias <= MOST_BIAS:
                raise InvalidRequestError(
                    f"logit_bias of token id {token} is {bias}; allowed is [-{MOST_BIAS:g}, {MOST_BIAS:g}]"
                )

    @classmethod
    def from_file(cls, path: Path, stated: Mapping[str, float | int], advice: str) -> SamplingParams:
        """A model's defaults, from the fields of one of its files; `advice` ends the message about a wrong one.

        Raises:
            InvalidRequestError: a value is out of its range; the message names the file.
        """
        try:
            return cls(**stated)  # type: ignore[arg-type]
        except InvalidRequestError as error:
            raise InvalidRequestError(f"{path}: {error}; {advice}") from None


class PageCopy(NamedTuple):
    """A KV page of one group that goes to a place in host memory (`to_host`), or comes back from there."""

    group: int
    page: int
    place: int
    to_host: bool


@dataclass(frozen=True)
class HostTier:
    """Host memory for KV pages that leave the devices.

    Args:
        places: pages of each group that fit; 0 for no host tier.
        page_s: seconds that a page takes to come back to its device.
    """

    places: int = 0
    page_s: float = 0.0


NO_HOST = HostTier()


class Chunk(NamedTuple):
    """Consecutive tokens of one request, computed together; a decode step is a chunk of one.

    A tuple, because each request makes one every tick, and a frozen dataclass takes three times as long to make.

    Args:
        slot: the request's row in the device tables.
        start: position of the first token.
        length: tokens.
        tokens: token ids, a tuple or what equals one; None for a decode, which takes the token that the device sampled
            last.
        last: whether the token sampled after this chunk is the request's next one.
        first_page: index of the first page in `pages` among the request's pages on the owner group.
        pages: pages of the owner group that the request holds from this chunk on.
        groups: the KV groups that hold the request so far, in order of allocation. The last one owns this chunk,
            which does not cross a border between groups.
    """

    slot: int
    start: int
    length: int
    tokens: Sequence[int] | None
    last: bool
    first_page: int = 0
    pages: tuple[int, ...] = ()
    groups: tuple[int, ...] = (0,)

    @property
    def end(self) -> int:
        """Context length after this chunk, in tokens."""
        return self.start + self.length

    @property
    def shared(self) -> bool:
        """Whether every group has the chunk's rows, because the request's KV is spread over several."""
        return len(self.groups) > 1


@dataclass(frozen=True)
class StepPlan:
    """The chunks of one microbatch, each of another request: decodes and prefill chunks in any mix."""

    chunks: tuple[Chunk, ...]


@dataclass(frozen=True)
class Slice:
    """Some layers of every stage, for the prompt chunks that the stages hold; their rows rest on the devices after it.

    The slices of a round pass all layers of a stage. Then every stage hands its rows to the next, and the chunks of the
    last stage are done: their keys and values are stored, and nothing is sampled.

    Args:
        stages: the chunks of each stage, at least two tokens each, first stage first. The same in every slice of a
            round, but for chunks that were dropped. In the next round each plan is one stage further.
        first, past: layers `[first, past)` of each stage; 0 begins a round.
    """

    stages: tuple[StepPlan, ...]
    first: int
    past: int


@dataclass(frozen=True)
class Admission:
    """A request that gets a slot.

    Args:
        slot: a free one, or the request's own when one more group joins it.
        prompt: number of tokens in its prompt.
        end_tokens: ids that end it; suppressed before `min_tokens`.
        prompted, generated: prompt tokens computed before, and tokens that it generated before.
    """

    slot: int
    sampling: SamplingParams
    prompt: int
    end_tokens: Sequence[int] = ()
    prompted: Sequence[int] = ()
    generated: Sequence[int] = ()


class ScoreQuery(NamedTuple):
    """What is asked about a chunk's rows, from its first one on: the log-probability of the token that follows each.

    Args:
        following: the tokens that follow the rows; the rows after these are not asked about.
        top: how many of the likeliest tokens each row gets; at most MAX_LOGPROBS.
    """

    following: Sequence[int]
    top: int


@dataclass(frozen=True, eq=False)
class PromptScores:
    """Natural log-probabilities of consecutive tokens of a prompt, as arrays, because a prompt may be long.

    Args:
        start: position of the first one in the prompt, at least 1: nothing comes before the first token of a prompt.
        ids: the tokens `[tokens]`.
        logprobs: fp32 `[tokens]`.
        top_ids: the likeliest tokens at each position `[tokens, top]`, best first.
        top_logprobs: fp32, as `top_ids`.
    """

    start: int
    ids: np.ndarray
    logprobs: np.ndarray
    top_ids: np.ndarray
    top_logprobs: np.ndarray

    def part(self, first: int, past: int) -> PromptScores:
        """Those of positions `[first, past)` that are here."""
        places = slice(max(0, first - self.start), max(0, past - self.start))
        arrays = (self.ids, self.logprobs, self.top_ids, self.top_logprobs)
        return PromptScores(max(first, self.start), *(array[places] for array in arrays))


class TokenResult(NamedTuple):
    """Result of a tick for one chunk of the plan that left; a tuple, as `Chunk` is.

    Only a `last` chunk's token is the request's next one.

    Args:
        token: the chosen id.
        finite: whether the logits, and all that the chunk computed, were finite; if not, the token means nothing.
        logprob: natural log-probability of the token, if the request asked for it.
        top: the likeliest tokens with their log-probabilities, best first, if the request asked for them.
        logits: fp32 `[vocab]`; empty unless the runtime keeps them.
        scores: of the tokens that follow the chunk's rows, if they were asked for.
    """

    token: int
    finite: bool = True
    logprob: float = 0.0
    top: tuple[tuple[int, float], ...] = ()
    # not an array: the command line imports this module, and without NumPy --help is quick
    logits: np.ndarray = ()  # type: ignore[assignment]
    scores: PromptScores | None = None
