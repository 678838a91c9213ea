"""Train the bundled model from scratch and export it: `python -m tools.train_tiny --minutes 35`.

Needs the packages `optax`, `typer` and `rich` besides those of the runtime.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import typer
from optax.contrib import MuonDimensionNumbers, muon
from rich.console import Console
from safetensors import safe_open
from safetensors.numpy import save_file

from medha_jax.specs.model import Architecture
from tools import tiny_corpus
from tools.tiny_model import CONFIG, LLAMA_LAYER, Parameters, export, initial_parameters, token_losses

console = Console(highlight=False)
STRETCH = 16


@dataclass(frozen=True)
class Phase:
    """A part of a run: it starts at share `start` of the run and has sequences of `length` tokens."""

    start: float
    length: int


PHASES = (Phase(0.0, 512), Phase(0.74, 2048), Phase(0.93, 4096))


def optimiser(name: str, rate: float, embedding_rate: float, decay: float) -> optax.GradientTransformation:
    """`muon` for the layers' matrices and Adam for the rest, or `adamw` for all, at the peak rate."""
    if name == "adamw":
        adam = optax.adamw(embedding_rate, b2=0.98, weight_decay=decay)
        return optax.chain(optax.clip_by_global_norm(1.0), adam)

    def matrices(parameters: Parameters) -> dict[str, MuonDimensionNumbers | None]:
        axes: dict[str, MuonDimensionNumbers | None] = dict.fromkeys(parameters)
        for path, (_, inputs) in LLAMA_LAYER.items():
            if inputs:
                dimensions = tuple(range(1, parameters[f"layers.{path}"].ndim))
                axes[f"layers.{path}"] = MuonDimensionNumbers(dimensions[:inputs], dimensions[inputs:])
        return axes

    return muon(
        rate,
        weight_decay=decay,
        adam_b1=0.9,
        adam_b2=0.98,
        adam_learning_rate=embedding_rate,
        muon_weight_dimension_numbers=matrices,
    )


def schedule(progress: float, step: int, warm_up: int, hold: float) -> float:
    """Factor on the peak learning rate: warm-up, constant, linear decay from share `hold` of the run."""
    return min((step + 1) / warm_up, 1.0, max(1.0 - progress, 0.0) / (1.0 - hold) + 0.01)


def rotary_positions(size: int, length: int, stretch: int, index: int, seed: int) -> np.ndarray:
    """Rotary positions `[size, length]` of batch `index`, with a random gap in every second window.

    Gaps give short windows relative distances of up to `stretch` times their length (positional skip-wise training,
    arXiv 2309.10400). With `stretch` 1 there are no gaps.
    """
    positions = np.tile(np.arange(length, dtype=np.int32), (size, 1))
    random = np.random.default_rng((seed, 1, index))
    for row in range(size):
        cut, gap = int(random.integers(1, length)), int(random.integers(length * (stretch - 1) + 1))
        positions[row, cut:] += gap * ((row + index) % 2)
    return positions


@partial(jax.jit, static_argnums=(0, 1), donate_argnums=(2, 3))
def train_step(
    arch: Architecture,
    transform: Any,
    parameters: Parameters,
    state: Any,
    tokens: jax.Array,
    positions: jax.Array,
    scale: jax.Array,
) -> tuple[Parameters, Any, jax.Array]:
    """One update; `scale` multiplies the peak learning rates. Also returns the mean loss in nats."""

    def mean_loss(parameters: Parameters) -> jax.Array:
        return jnp.mean(token_losses(arch, parameters, tokens, positions))

    loss, gradients = jax.value_and_grad(mean_loss)(parameters)
    updates, state = transform.update(gradients, state, parameters)
    updates = jax.tree.map(lambda update: update * scale, updates)
    return optax.apply_updates(parameters, updates), state, loss


def save_checkpoint(path: Path, trees: Any, progress: dict[str, float]) -> None:
    """Write the leaves of `trees`, and the run's `progress` in the header; replaces the file atomically."""
    leaves = {f"{i:04d}": np.asarray(leaf) for i, leaf in enumerate(jax.tree.leaves(trees))}
    save_file(leaves, path.with_suffix(".new"), metadata={"progress": json.dumps(progress)})
    path.with_suffix(".new").replace(path)


def load_checkpoint(path: Path, trees: Any) -> tuple[Any, dict[str, float]]:
    """Read what `save_checkpoint` wrote into the structure of `trees`."""
    with safe_open(path, framework="numpy") as file:
        progress = json.loads(file.metadata()["progress"])
        leaves = [jnp.asarray(file.get_tensor(name)) for name in sorted(file.keys())]
    return jax.tree.unflatten(jax.tree.structure(trees), leaves), progress


def window_losses(arch: Architecture, parameters: Parameters, tokens: np.ndarray, length: int) -> np.ndarray:
    """Losses in nats of the stream cut into windows, `[windows, length]`; one window at a time."""
    score = jax.jit(partial(token_losses, arch))
    starts = range(0, len(tokens) - length, length)
    return np.concatenate([np.asarray(score(parameters, tokens[None, s : s + length + 1])) for s in starts])


def evaluate(arch: Architecture, parameters: Parameters, held_out: np.ndarray, nbytes: int) -> dict[str, Any]:
    """Held-out loss of the exported (bfloat16) weights at several context lengths, over the same tokens."""
    rounded = jax.tree.map(lambda x: x.astype(jnp.bfloat16).astype(jnp.float32), parameters)
    longest = 16384
    stream = held_out[: (len(held_out) - 1) // longest * longest + 1]
    report: dict[str, Any] = {"tokens": len(stream) - 1, "bytes_per_token": nbytes / len(held_out)}
    for length in (512, 2048, 8192, longest):
        losses = window_losses(arch, rounded, stream, length)
        nats = float(losses.mean())
        bits = nats / np.log(2) / report["bytes_per_token"]
        report[str(length)] = {"nats_per_token": nats, "bits_per_byte": float(bits)}
        console.print(f"held out, context {length}: {nats:.4f} nats/token, {bits:.4f} bits/byte")
    bounds = (0, 512, 2048, 4096, 8192, 16384)
    for low, high in pairwise(bounds):
        report[f"positions {low}-{high}"] = float(losses[:, low:high].mean())
        console.print(f"  positions {low} to {high}: {losses[:, low:high].mean():.4f} nats/token")
    return report


def main(
    out: Annotated[Path, typer.Option(help="Directory of the model.")] = Path("medha_jax/bundled/tiny"),
    minutes: Annotated[float, typer.Option(help="Training time; the schedule follows the clock.")] = 35.0,
    steps: Annotated[int, typer.Option(help="If positive, the schedule follows steps: repeatable.")] = 0,
    seed: Annotated[int, typer.Option()] = 0,
    step_tokens: Annotated[int, typer.Option(help="Tokens in a step.")] = 8192,
    method: Annotated[str, typer.Option(help="muon or adamw.")] = "muon",
    rate: Annotated[float, typer.Option(help="Peak learning rate of Muon.")] = 0.02,
    embedding_rate: Annotated[float, typer.Option(help="Peak learning rate of Adam.")] = 0.004,
    decay: Annotated[float, typer.Option(help="Weight decay.")] = 0.02,
    warm_up: Annotated[int, typer.Option(help="Warm-up steps.")] = 20,
    hold: Annotated[float, typer.Option(help="Share of the run after which the rate decays.")] = 0.5,
    work: Annotated[Path, typer.Option(help="Directory for checkpoints and the log.")] = Path("build/tiny"),
    resume: Annotated[bool, typer.Option(help="Continue from the checkpoint.")] = False,
    checkpoint_minutes: Annotated[float, typer.Option()] = 3.0,
) -> None:
    """Train the tokenizer and the model on this interpreter's standard library, then export both."""
    work.mkdir(parents=True, exist_ok=True)
    corpus = list(tiny_corpus.documents(tiny_corpus.standard_library()))
    training, held_out = tiny_corpus.split(corpus)
    tokenizer = tiny_corpus.train_tokenizer([document.text for document in training])
    stream, test_stream = tiny_corpus.encode(tokenizer, training), tiny_corpus.encode(tokenizer, held_out)
    console.print(f"{len(training)} files, {len(stream):,} tokens; held out {len(test_stream):,} tokens")

    arch = Architecture.from_config(CONFIG)
    parameters = initial_parameters(arch, seed)
    transform = optimiser(method, rate, embedding_rate, decay)
    state = transform.init(parameters)
    at = {"step": 0, "seconds": 0.0, "tokens": 0}
    checkpoint = work / "checkpoint.safetensors"
    if resume:
        (parameters, state), at = load_checkpoint(checkpoint, (parameters, state))
    budget, saved = minutes * 60.0, time.monotonic()
    recent: list[tuple[int, float, float]] = []
    with (work / "log.jsonl").open("a" if resume else "w", encoding="utf-8") as log:
        while (progress := at["step"] / steps if steps else at["seconds"] / budget) < 1.0:
            began = time.monotonic()
            length = next(phase.length for phase in reversed(PHASES) if progress >= phase.start)
            size, index = step_tokens // length, int(at["step"])
            windows = tiny_corpus.batch(stream, size, length, index, seed)
            stretch = STRETCH if length > PHASES[0].length else 1
            positions = rotary_positions(size, length, stretch, index, seed)
            scale = schedule(progress, int(at["step"]), warm_up, hold)
            parameters, state, loss_array = train_step(
                arch, transform, parameters, state, windows, positions, np.float32(scale)
            )
            loss = float(loss_array)
            seconds = time.monotonic() - began
            at["step"] += 1
            at["seconds"] += seconds
            at["tokens"] += size * length
            recent = [*recent[-19:], (size * length, seconds, loss)]
            speed = size * length / seconds
            entry = {**at, "length": length, "loss": loss, "scale": scale, "tokens_per_second": speed}
            log.write(json.dumps(entry) + "\n")
            if at["step"] % 10 == 0:
                log.flush()
                speed = sum(t for t, _, _ in recent) / sum(s for _, s, _ in recent)
                left = (1 - progress) / max(progress, 1e-9) * at["seconds"] / 60
                mean = np.mean([loss for _, _, loss in recent])
                console.print(
                    f"step {at['step']:5.0f}  loss {mean:.4f}  rate x{scale:.3f}  length {length}  "
                    f"{at['tokens'] / 1e6:.2f} M tokens  {speed:,.0f} tokens/s  {left:.1f} min left"
                )
            if time.monotonic() - saved > checkpoint_minutes * 60:
                save_checkpoint(checkpoint, (parameters, state), at)
                saved = time.monotonic()
    save_checkpoint(checkpoint, (parameters, state), at)

    export(parameters, out)
    tiny_corpus.write_tokenizer(tokenizer, out)
    report = {
        "files": len(training),
        "bytes": sum(document.nbytes for document in training),
        "corpus_tokens": len(stream),
        "held_out_files": [document.name for document in held_out],
        "run": at,
        "held_out": evaluate(arch, parameters, test_stream, sum(document.nbytes for document in held_out)),
    }
    (work / "report.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
