"""Serves a few requests on a runtime, chunk by chunk: in whole ticks, or in slices with ticks in between.

Nothing is planned cleverly here. The driver keeps the rules of `plan.Slice`: one chunk a group and stage, the same
plans in all slices of a round, the last tokens of a prompt in an ordinary tick.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from medha_jax.plan import Admission, Chunk, SamplingParams, Slice, StepPlan, TokenResult
from medha_jax.runtime import MeshExecutor
from medha_jax.runtime.packing import EMPTY
from medha_jax.runtime.tick_results import NO_TOKEN, SliceHandle


@dataclass
class Request:
    """A prompt, where its KV goes, and what came of it so far.

    Args:
        groups: KV groups in order of allocation; the prompt's first `per_group` tokens go to the first one.
        pages: of each of these groups, for prompt and output.
    """

    slot: int
    prompt: tuple[int, ...]
    groups: tuple[int, ...] = (0,)
    pages: tuple[tuple[int, ...], ...] = ()
    sampling: SamplingParams = field(default_factory=lambda: SamplingParams(temperature=0))
    tokens: list[int] = field(default_factory=list)
    logits: list[np.ndarray] = field(default_factory=list)

    def chunk(self, executor: MeshExecutor, start: int, length: int) -> Chunk:
        """Prompt tokens from `start` on; they may not cross a border between groups."""
        per_group, page = executor.sizes.per_group, executor.config.mesh.page_size
        place = start // per_group
        assert (start + length - 1) // per_group == place
        local, end = start % per_group, start % per_group + length
        first, past = -(-local // page), -(-end // page)
        tokens, last = self.prompt[start : start + length], start + length == len(self.prompt)
        pages, groups = self.pages[place][first:past], self.groups[: place + 1]
        return Chunk(self.slot, start, length, tokens, last, first, pages, groups)

    def decode(self, executor: MeshExecutor) -> Chunk:
        """The step after the token that was sampled last."""
        start, per_group = len(self.prompt) + len(self.tokens) - 1, executor.sizes.per_group
        place, local = start // per_group, start % per_group
        page = executor.config.mesh.page_size
        pages = (self.pages[place][local // page],) if local % page == 0 else ()
        return Chunk(self.slot, start, 1, None, True, local // page, pages, self.groups[: place + 1])

    def take(self, result: TokenResult) -> None:
        """Note the next token."""
        self.tokens.append(result.token)
        self.logits.append(result.logits)


class Driver:
    """Runs ticks and slices of one runtime; each of both lanes has its own pipeline."""

    def __init__(self, executor: MeshExecutor) -> None:
        self.executor, self.stages = executor, executor.config.mesh.spp
        self.held: list[StepPlan] = [EMPTY] * self.stages
        self.at = 0  # first layer of the next slice; 0 between two rounds
        self.rounds = self.slices = 0  # that have run

    def admit(self, request: Request) -> None:
        """Give the request its slot."""
        self.executor.admit(Admission(request.slot, request.sampling, len(request.prompt)))

    def tick(self, chunks: Sequence[Chunk]) -> list[TokenResult]:
        """One ordinary tick and as many empty ones as it takes until its chunks have left."""
        handles = [self.executor.submit(StepPlan(tuple(chunks)))]
        handles += [self.executor.submit(EMPTY) for _ in range(self.stages - 1)]
        *before, results = [self.executor.collect(handle) for handle in handles]
        assert not any(before)
        return results

    def prefill(self, request: Request, start: int) -> None:
        """The rest of the prompt in one ordinary tick, and its first token."""
        (result,) = self.tick([request.chunk(self.executor, start, len(request.prompt) - start)])
        request.take(result)

    def decode(self, requests: Sequence[Request]) -> None:
        """One token of each request."""
        results = self.tick([request.decode(self.executor) for request in requests])
        for request, result in zip(requests, results, strict=True):
            request.take(result)

    def enter(self, *chunks: Chunk) -> None:
        """Begin a round: these chunks are in the first stage; all others are one stage further than before."""
        assert self.at == 0 and not self.held[0].chunks
        self.held[0] = StepPlan(chunks)

    def slice(self, layers: int) -> bool:
        """Run up to so many layers; whether the round is over."""
        past = min(self.at + layers, self.executor.slice_lengths[-1])
        handle = self.executor.submit_slice(Slice(tuple(self.held), self.at, past))
        assert isinstance(handle, SliceHandle)
        over = past == self.executor.slice_lengths[-1]
        assert self.executor.collect(handle) == [NO_TOKEN] * (len(self.held[-1].chunks) if over else 0)
        self.at = 0 if over else past
        self.slices += 1
        if over:
            self.held, self.rounds = [EMPTY, *self.held[:-1]], self.rounds + 1
        return over

    def drop(self, slot: int) -> None:
        """Forget the chunks of a request; a round that has none left is over."""
        self.held = [StepPlan(tuple(c for c in plan.chunks if c.slot != slot)) for plan in self.held]
        if not self.busy:
            self.at = 0

    @property
    def busy(self) -> bool:
        """Whether any stage holds a chunk."""
        return any(plan.chunks for plan in self.held)


def twin(request: Request) -> Request:
    """The same request without what came of it."""
    return replace(request, tokens=[], logits=[])


def agree(got: Request, wanted: Request) -> None:
    """Tokens are equal, and logits within 1e-4."""
    assert got.tokens == wanted.tokens
    np.testing.assert_allclose(np.stack(got.logits), np.stack(wanted.logits), rtol=0, atol=1e-4)


def mixed(executor: MeshExecutor, vocab: int) -> list[Request]:
    """A prompt that spreads over groups if there are several, one of the last group, and a short one of the first."""
    rng, mesh, per_group = np.random.default_rng(5), executor.config.mesh, executor.sizes.per_group
    prompts = [tuple(rng.integers(0, vocab, length).tolist()) for length in (600, 110, 20)]
    groups = (tuple(map(int, rng.permutation(mesh.kvp))), (mesh.kvp - 1,), (0,))
    made = []
    for slot, (prompt, mine) in enumerate(zip(prompts, groups, strict=True)):
        length = len(prompt)
        mine = mine[: -(-(length + 8) // per_group)]
        pages = tuple(range(slot * 60, slot * 60 + -(-min(per_group, length + 8) // mesh.page_size)))
        made.append(Request(slot, prompt, mine, (pages,) * len(mine)))
    return made


def serve_mixed(executor: MeshExecutor, vocab: int, seed: int, tokens: int = 4) -> list[Request]:
    """Serve `mixed`: the first two in slices of random lengths, up to one chunk of each in a round; the third decodes.

    Chunks have an even number of tokens, so that none of one token is left before a border.
    """
    driver, rng, requests = Driver(executor), np.random.default_rng(seed), mixed(executor, vocab)
    long, other, short = requests
    fed, mesh = {long.slot: 0, other.slot: 0}, executor.config.mesh
    for request in requests:
        driver.admit(request)
    driver.prefill(short, 0)

    def chunk(request: Request) -> Chunk | None:
        start, per_group = fed[request.slot], executor.sizes.per_group
        shared = start >= per_group
        sizes = mesh.shared_buckets.slices if shared and mesh.shared_buckets else mesh.buckets.slices
        most = min(sizes[-1], len(request.prompt) - 10 - start, per_group - start % per_group) // 2
        return request.chunk(executor, start, 2 * int(rng.integers(1, most + 1))) if most > 0 else None

    waiting = True
    while waiting or driver.busy:
        if not driver.at:
            found = [made for made in map(chunk, (long, other)) if made is not None]
            waiting = bool(found)
            if len(found) == 2 and not found[0].shared and found[0].groups == found[1].groups:
                found.pop(int(rng.integers(0, 2)))
            for made in found:
                fed[made.slot] = made.end
            driver.enter(*found)
        if driver.busy:
            driver.slice(int(rng.integers(1, executor.slice_lengths[-1] + 1)))
        if rng.random() < 0.3 and len(short.tokens) < tokens:
            driver.decode([short])
    for request in (long, other):
        driver.prefill(request, fed[request.slot])
    while left := [request for request in requests if len(request.tokens) < tokens]:
        driver.decode(left)
    return requests


def alone(executor: MeshExecutor, request: Request, tokens: int = 4) -> Request:
    """What one device gives to the request, its prompt in one tick."""
    pages = tuple(range(-(-(len(request.prompt) + tokens) // executor.config.mesh.page_size)))
    driver, same = Driver(executor), replace(request, groups=(0,), pages=(pages,), tokens=[], logits=[])
    driver.admit(same)
    driver.prefill(same, 0)
    for _ in range(tokens - 1):
        driver.decode([same])
    return same
