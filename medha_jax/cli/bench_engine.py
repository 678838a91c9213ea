"""`medha-jax bench engine`: the engine in this process, without a network."""

from __future__ import annotations

import dataclasses
import json as jsons
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

import typer

from medha_jax.cli.interrupt import noted_interrupts
from medha_jax.cli.opening import model_sizes, tell
from medha_jax.cli.option_groups import Shown, refusal, takes_groups
from medha_jax.cli.prompt import model_directory, whole_numbers
from medha_jax.cli.runtime_options import LayoutOptions, RuntimeOptions
from medha_jax.cli.standard_streams import print_result
from medha_jax.config import RuntimeConfig, same_setting, setting

if TYPE_CHECKING:
    from medha_jax.engine.speed import EngineSpeed, Speed, StartWatch

# settings that are derived from what is measured
FITTED = {"model", "mesh", "max_context", "slots", "pool_tokens", "host_kv_gib"}


@dataclass(frozen=True)
class EngineOptions:
    """What is measured."""

    model: str = same_setting(RuntimeOptions, "model")
    layout: LayoutOptions = field(default_factory=LayoutOptions)
    settings: Annotated[dict[str, Any], Shown(of=RuntimeConfig, without=FITTED)] = field(default_factory=dict)
    chunks: str = setting("layout", "Tokens of prompt chunks. Default: the layout's shapes.", metavar="N,…")
    contexts: str = setting("0,4096,16384", "Tokens before them.", metavar="N,…")
    batches: str = setting("layout", "Decodes in a tick. Default: the layout's shapes.", metavar="N,…")
    decode_context: int = setting(512, "Tokens before a decode.", at_least=1)
    ticks: int = setting(8, "To time of each kind.", at_least=1, at_most=10_000)
    json: bool = setting(False, "Print one JSON object instead of tables.", switch=True)


@takes_groups
def bench_engine(asked: EngineOptions) -> None:
    """Speed of the engine without a network: prompts by chunk and context, decodes by batch, host time, start-up.

    Every figure is a median over ticks of one kind. The time model is fitted to half of all ticks and predicts the
    others.
    """
    from medha_jax.cli.bench_tables import print_engine
    from medha_jax.engine.speed import EngineSpeed, StartWatch, decode_output

    decode_context, ticks = asked.decode_context, asked.ticks
    buckets = dataclasses.replace(asked.layout.config.buckets, slices=())  # only ticks are measured
    layout = dataclasses.replace(asked.layout.config, buckets=buckets)
    wanted = _sizes("--chunks", asked.chunks, buckets.prefill)
    before = _sizes("--contexts", asked.contexts, (), least=0)
    decodes = _sizes("--batches", asked.batches, tuple(size for size in buckets.decode if size))
    directory = model_directory(asked.model)
    if not (wanted[0] >= 2 and wanted[-1] <= buckets.prefill[-1]):
        raise typer.BadParameter(f"chunks are {wanted}; allowed are 2 to {buckets.prefill[-1]} tokens in this layout")
    if decodes[-1] > buckets.decode[-1]:
        raise typer.BadParameter(f"batches are {decodes}; allowed are 1 to {buckets.decode[-1]} in this layout")
    decoding = decode_context + decode_output(max(decodes), decode_context, ticks, buckets.prefill[-1])
    longest = max(max(before) + (ticks + 2) * max(wanted), decoding)
    pool = max(longest, max(decodes) * (decoding + layout.page_size))
    config = RuntimeConfig(
        model=directory,
        mesh=layout,
        max_context=longest,
        slots=layout.usual_slots,
        pool_tokens=pool,
        **asked.settings,
    )
    model_sizes(config)

    from medha_jax.runtime import open_executor
    from medha_jax.text import Tokenizer

    start = StartWatch(tell)
    executor = open_executor(config, start.told)
    start.ready()
    with noted_interrupts() as check:
        speed = EngineSpeed(executor, Tokenizer.from_directory(directory), on_tick=lambda what: check())
        prefills, decoded = [], []
        for context in before:
            for chunk in wanted:
                tell(f"prompt chunks of {chunk:,} tokens at {context:,}")
                prefills.append(speed.prefill(chunk, context, ticks))
        for batch in decodes:
            tell(f"{batch} decodes at {decode_context:,} tokens")
            decoded.append(speed.decode(batch, decode_context, ticks))
    print_result(
        asked.json,
        lambda: jsons.dumps(_speed_json(speed, prefills, decoded, start)),
        lambda: print_engine(speed, prefills, decoded, start),
    )


def _sizes(option: str, text: str, layout: tuple[int, ...], least: int = 1) -> tuple[int, ...]:
    """Numbers given as a list, or those of the `layout`."""
    if text == "layout" and layout:
        return layout
    found = whole_numbers(
        text.split(","),
        least,
        lambda part: refusal(option, f"{part!r} is no number from {least}; give some as in 64,1024"),
    )
    return tuple(sorted(set(found)))


def _speed_json(speed: EngineSpeed, prefills: list[Speed], decoded: list[Speed], start: StartWatch) -> dict[str, Any]:
    """All figures; times in seconds."""
    host, prediction = speed.host, speed.prediction()

    def stated(kinds: list[Speed]) -> list[dict[str, Any]]:
        return [dataclasses.asdict(one) | {"tokens_per_second": one.tokens_per_second} for one in kinds]

    return {
        "prefill": stated(prefills),
        "decode": stated(decoded),
        "host": None if host is None else dataclasses.asdict(host),
        "time_model": None if prediction is None else dataclasses.asdict(prediction),
        "start": {
            "seconds": start.start_s,
            "compile_seconds": start.compile_s,
            "programs": start.programs,
            "from_cache": start.from_cache,
        },
    }
