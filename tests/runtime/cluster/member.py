"""One process of a cluster, for tests: `python -m tests.runtime.cluster.member MODEL SETTINGS PROCESS`.

Process 0 serves the requests of `mix` and prints their tokens, and those of `adopted`, as one JSON object. With
`endless` it goes on serving, and says so.
"""

from __future__ import annotations

import itertools
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from medha_jax.config import Buckets, MeshConfig, RuntimeConfig
from medha_jax.plan import Admission, Chunk, PageCopy, SamplingParams, Slice, StepPlan

PER_GROUP = 64


def mix() -> list[tuple[int, Any]]:
    """Requests by the tick they come in: one that spreads over two groups of 64 tokens, short ones beside it."""
    from medha_jax.engine import GenerationRequest

    rng = np.random.default_rng(0)

    def request(prompt: int, tokens: int, chunks: Any = None, **sampling: Any) -> GenerationRequest:
        ids = tuple(rng.integers(0, 256, prompt).tolist())
        stated = {"temperature": 0, "max_tokens": tokens, "ignore_eos": True, **sampling}
        return GenerationRequest(ids, SamplingParams(**stated), chunks=chunks)

    return [
        (0, request(10, 25, logprobs=2)),
        (0, request(100, 12)),
        (1, request(40, 30, (1, 7, 20), frequency_penalty=0.5)),
        (3, request(3, 20, (1,), temperature=0.9, seed=2**40 + 7)),
        (6, request(50, 8, repetition_penalty=1.2, logit_bias=((7, 50.0), (9, -2.5)))),
        (8, request(20, 5, (20,), allowed_token_ids=(3, 5, 250))),
    ]


def serve(executor: Any, tokenizer: Any, endless: bool = False) -> dict[str, list[int]]:
    """Tokens of each request of `mix`; with `endless`, its first one comes again and again."""
    from medha_jax.engine import Completed, OfflineEngine

    engine = OfflineEngine(executor, tokenizer, itertools.count().__next__)
    waiting, tokens, tick = mix()[:1] if endless else mix(), {}, 0
    while waiting or engine.busy:
        while waiting and waiting[0][0] <= tick:
            engine.add(waiting.pop(0)[1])
        for number, event in engine.step():
            if isinstance(event, Completed):
                tokens[str(number)] = list(event.completion.token_ids)
        tick += 1
        if endless and tick == 5:
            print("serving", flush=True)
        if endless and not waiting:
            waiting = [(tick, mix()[0][1])]
    return tokens


def adopted(executor: Any) -> list[int]:
    """The token after a prompt computed alone, and after the same one in three ways.

    Through its first page, through a copy of that page that was on the host, and in slices.
    """
    prompt, group, stages = tuple(range(20, 40)), executor.config.mesh.kvp - 1, executor.config.mesh.spp

    def token(chunk: Chunk) -> int:
        handle = executor.submit(StepPlan((chunk,)))
        for _ in range(stages - 1):
            handle = executor.submit(StepPlan(()))
        return executor.collect(handle)[0].token

    executor.admit(Admission(0, SamplingParams(temperature=0), 20))
    alone = token(Chunk(0, 0, 20, prompt, True, 0, (3, 1), (group,)))
    executor.admit(Admission(1, SamplingParams(temperature=0), 20))
    executor.adopt(1, group, (3,))
    through = token(Chunk(1, 16, 4, prompt[16:], True, 1, (5,), (group,)))

    executor.copy_pages([PageCopy(group, 3, 1, True), PageCopy(group, 9, 1, False)])
    executor.admit(Admission(3, SamplingParams(temperature=0), 20))
    executor.adopt(3, group, (9,))
    back = token(Chunk(3, 16, 4, prompt[16:], True, 1, (6,), (group,)))

    executor.admit(Admission(2, SamplingParams(temperature=0), 20))
    chunk = Chunk(2, 0, 16, prompt[:16], False, 0, (7,), (group,))
    for stage in range(stages):
        held = tuple(StepPlan((chunk,) if at == stage else ()) for at in range(stages))
        for first in range(executor.slice_lengths[-1]):
            done = executor.collect(executor.submit_slice(Slice(held, first, first + 1)))
    assert len(done) == 1
    return [alone, through, back, token(Chunk(2, 16, 4, prompt[16:], True, 1, (8,), (group,)))]


def config(model: Path, tp: int = 1, spp: int = 1, kvp: int = 1, **settings: Any) -> RuntimeConfig:
    """A runtime of two shapes, so that little is compiled."""
    mesh = MeshConfig(
        tp=tp,
        spp=spp,
        kvp=kvp,
        page_size=16,
        tokens_per_group=PER_GROUP if kvp > 1 else None,
        buckets=Buckets(decode=(8,), prefill=(32,), slices=(16,), chunks=4, mixed_only=True),
        shared_buckets=Buckets(slices=(), decode=(1,), prefill=(32,), chunks=1, mixed_only=True),
    )
    cache = settings.pop("compilation_cache", None)
    sizes = {"slots": 8, "pool_tokens": 512, "host_kv_gib": 2**-10, **settings}
    return RuntimeConfig(model=model, mesh=mesh, compilation_cache=Path(cache) if cache else None, **sizes)


def main() -> None:
    model, settings, process = Path(sys.argv[1]), json.loads(sys.argv[2]), int(sys.argv[3])
    own = settings.pop("only", {}).get(str(process), {})  # what a process has different
    if own.pop("absent", False):
        return
    endless = settings.pop("endless", False)
    paths = {name: Path(path) for name, path in settings.pop("tls", {}).get(str(process), {}).items()}

    from medha_jax.net import TlsFiles
    from medha_jax.runtime.cluster import ClusterConfig, follow, lead
    from medha_jax.text import Tokenizer

    names = ("coordinator", "processes", "plans", "heartbeat", "patience", "trusted")
    stated = {name: settings.pop(name) for name in names if name in settings}
    if stated["coordinator"] is None:  # then JAX detects the rest, too
        del stated["processes"]
    else:
        stated["process"] = process
    cluster = ClusterConfig(tls=TlsFiles(**paths) if paths else None, **stated)
    built = config(model, **{**settings, **own})
    if process:
        follow(built, cluster, lambda line: None)
        return
    with lead(built, cluster, lambda line: None) as executor:
        tokenizer = Tokenizer.from_directory(model)
        result = dict(tokens=serve(executor, tokenizer), adopted=adopted(executor))
        pool = executor._executor.programs.state_shapes.pool
        result["groups"] = pool.shape[2] // executor.sizes.pages
        print(json.dumps(result), flush=True)
        if endless:
            serve(executor, tokenizer, endless)


if __name__ == "__main__":
    main()
