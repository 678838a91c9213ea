"""Turns the sampled tokens of one request into text, and ends it by stop token, stop string or token limit."""

from __future__ import annotations

from medha_jax.engine.events import Completion, Course, FinishReason, GenerationRequest, NewTokens, TokenLogprobs
from medha_jax.engine.generation import OutputFactory
from medha_jax.grammar.matcher import Matcher
from medha_jax.plan import InvalidRequestError, SamplingParams
from medha_jax.text.detokenizer import Detokenizer
from medha_jax.text.stops import StopStrings
from medha_jax.text.tokenizer import Tokenizer
from medha_jax.token_ids import IdArray, array_of, no_ids


class RequestOutput:
    """Owns the tokens and text of one request, and decides when its generation is over.

    - An end-of-sequence id (unless `ignore_eos`) or a stop token id ends the generation after at least `min_tokens`
      other tokens. It stays in the token ids; its text is shown only with `include_stop`.
    - A stop string ends it, too. The text of the first `min_tokens` tokens is not searched. A stop string that is one
      special token ends it although special tokens have no text.
    - A grammar ends it when nothing can follow, with any token.
    - Otherwise the limit ends it: the smaller of `max_tokens` and `limit`.
    """

    def __init__(
        self, request: GenerationRequest, tokenizer: Tokenizer, *, limit: int | None = None, keep_logprobs: bool = False
    ) -> None:
        """Begin with nothing generated.

        The end of the request's prompt is the detokenizer's context. So the text continues the prompt exactly, for
        example with the space that begins a word. `limit` is the number of tokens that still fit the context after the
        prompt; None for no such limit. `keep_logprobs` is for a completion that has them, too, not only the deltas.
        """
        sampling = request.sampling
        self._request, self._min_tokens = request, sampling.min_tokens
        self._stop_ids = frozenset(sampling.stop_token_ids)
        if not sampling.ignore_eos:
            self._stop_ids |= frozenset(request.eos_ids)
        self._limit = min((n for n in (sampling.max_tokens, limit) if n is not None), default=None)
        self._detokenizer = Detokenizer(tokenizer, request.prompt_ids, sampling.skip_special_tokens)
        special = tokenizer.special_tokens if sampling.skip_special_tokens else {}
        self._stop_texts = {special[stop]: stop for stop in sampling.stop if stop in special}
        self._stops = StopStrings(sampling.stop, include=sampling.include_stop)
        self._token_ids = no_ids()
        self._keep_logprobs, self._logprobs = keep_logprobs, list[TokenLogprobs]()
        self._pieces: list[str] = []
        self._finish_reason: FinishReason | None = None
        self._matched: str | int | None = None
        self._matcher = None if request.grammar is None else request.grammar.matcher()

    @property
    def matcher(self) -> Matcher | None:
        """Where it stands in its request's grammar, if there is one."""
        return self._matcher

    @property
    def token_ids(self) -> IdArray:
        """Every token generated so far, in order."""
        return IdArray(array_of(self._token_ids[:]))

    @property
    def finish_reason(self) -> FinishReason | None:
        """Why the generation ended; None while it goes on."""
        return self._finish_reason

    @property
    def matched(self) -> str | int | None:
        """The stop string or token id that ended the generation."""
        return self._matched

    @property
    def finished(self) -> bool:
        """Whether the generation is over; later tokens are dropped."""
        return self._finish_reason is not None

    def push(self, token_id: int, logprobs: TokenLogprobs | None = None) -> NewTokens | None:
        """Take the next sampled token.

        Returns:
            The token with the text that it made certain, which may be empty. The last one carries all withheld text.
            None if the generation was already over: a pipeline may sample past the end.

        Raises:
            GrammarError: the grammar does not allow the token.
        """
        if self._finish_reason is not None:
            return None
        self._token_ids.append(token_id)
        if logprobs is not None and self._keep_logprobs:
            self._logprobs.append(logprobs)
        count = len(self._token_ids)
        searched = count > self._min_tokens
        if searched and token_id in self._stop_texts:
            text = self._read(self._detokenizer.finish() + self._stop_texts[token_id], searched)
        elif searched and token_id in self._stop_ids:
            text = self._end("stop", token_id)
        else:
            text = self._read(self._detokenizer.push(token_id), searched)
            complete = self._follow(token_id)
            if self._finish_reason is None and (complete or count == self._limit):
                text += self._end("stop" if complete else "length", None)
        self._pieces.append(text)
        return NewTokens((token_id,), text, () if logprobs is None else (logprobs,))

    def completion(self, course: Course) -> Completion:
        """The finished generation, with how it was served.

        Raises:
            RuntimeError: the generation is not over.
        """
        if self._finish_reason is None:
            raise RuntimeError(f"the generation is not over after {len(self._token_ids)} tokens")
        return Completion(
            token_ids=tuple(self._token_ids),
            text="".join(self._pieces),
            finish_reason=self._finish_reason,
            matched=self._matched,
            prompt_tokens=len(self._request.prompt_ids),
            logprobs=tuple(self._logprobs),
            **vars(course),
        )

    def _follow(self, token_id: int) -> bool:
        """Take a token in the grammar; returns whether nothing can follow it."""
        if self._matcher is None:
            return False
        self._matcher.accept(token_id)
        return self._matcher.ended

    def _read(self, text: str, searched: bool) -> str:
        """Pass text through the stop strings; a match ends the generation."""
        if not searched:
            return text
        safe, matched = self._stops.push(text)
        if matched is not None:
            self._finish_reason, self._matched = "stop", matched
        return safe

    def _end(self, reason: FinishReason, stop_id: int | None) -> str:
        """End the generation and return the withheld text, which may still contain a stop string."""
        tail = ""
        if stop_id is not None and self._request.sampling.include_stop:
            tail = self._detokenizer.push(stop_id)
        safe, matched = self._stops.push(tail + self._detokenizer.finish())
        if matched is None:
            rest, matched = self._stops.finish()
            safe += rest
        if matched is None:
            self._finish_reason, self._matched = reason, stop_id
        else:
            self._finish_reason, self._matched = "stop", matched
        return safe


def check_stops(sampling: SamplingParams, tokenizer: Tokenizer) -> None:
    """Refuse stop strings that no text can have.

    Raises:
        InvalidRequestError: one has a special token beside other characters, and special tokens have no text.
    """
    if not sampling.skip_special_tokens:
        return
    for stop in sampling.stop:
        special = next((text for text in tokenizer.special_tokens if text in stop and text != stop), None)
        if special is not None and stop not in tokenizer.special_tokens:
            raise InvalidRequestError(
                f"the stop string {stop!r} is never found, because {special!r} is a special token; "
                "stop at this token alone, or set skip_special_tokens to false"
            )


def text_outputs(tokenizer: Tokenizer, *, keep_logprobs: bool = False) -> OutputFactory:
    """A factory of outputs that answer with text; see `RequestOutput`."""
    return lambda request, limit: RequestOutput(request, tokenizer, limit=limit, keep_logprobs=keep_logprobs)
