"""`medha-jax generate`: continues one prompt."""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from medha_jax.cli.cluster import SEVERAL, ClusterOptions, ended_at_once, quiet_stdout
from medha_jax.cli.generation_report import completion_json, print_summary, prompt_json, scores_json
from medha_jax.cli.interrupt import noted_interrupts
from medha_jax.cli.opening import model_sizes, tell
from medha_jax.cli.option_groups import Shown, takes_groups
from medha_jax.cli.progress import PrefillProgress
from medha_jax.cli.prompt import (
    model_directory,
    one_source,
    parse_chunks,
    read_ids,
    read_prompt,
    read_text,
    sampling_params,
)
from medha_jax.cli.remote import RemoteOptions, check_options, connection
from medha_jax.cli.remote import stream as stream_remote
from medha_jax.cli.runtime_options import RuntimeOptions
from medha_jax.cli.standard_streams import reader_may_leave
from medha_jax.config import ModelDefaults, RuntimeConfig, setting
from medha_jax.plan import MAX_OUTPUTS, InvalidRequestError, SamplingParams, output_seed
from medha_jax.text import Tokenizer

if TYPE_CHECKING:
    from medha_jax.client import AnswerOutput
    from medha_jax.engine import Completion, Executor, GenerationRequest


@dataclass(frozen=True)
class PromptOptions:
    """Source of the prompt."""

    prompt: str | None = setting(None, "The prompt itself.", metavar="TEXT")
    prompt_file: str | None = setting(None, "A UTF-8 text file; - is standard input.", metavar="FILE")
    prompt_ids: str | None = setting(None, "Token ids; - is standard input.", metavar="1,2,3")
    add_special_tokens: bool | None = setting(
        None, "Whether the tokenizer adds its own to a text, often a first BOS. Default: yes."
    )

    def __post_init__(self) -> None:
        one_source(self.prompt, self.prompt_file, self.prompt_ids)
        if self.prompt_ids is not None and self.add_special_tokens is not None:
            raise InvalidRequestError("--add-special-tokens is for a text; the prompt is --prompt-ids")


@takes_groups
def generate(
    context: typer.Context,
    asked: Annotated[PromptOptions, Shown(panel="Prompt (exactly one)")],
    given: Annotated[dict[str, Any], Shown(of=SamplingParams, unset=True)],
    defaults: Annotated[ModelDefaults, Shown(panel="Sampling")],
    runtime: Annotated[RuntimeOptions, Shown(without={"slots", "pool_tokens", "host_kv_gib", "prompt_logprobs"})],
    processes: Annotated[ClusterOptions, SEVERAL],
    remote: Annotated[RemoteOptions, Shown(panel="From a server")],
    chunk: Annotated[
        str,
        typer.Option(metavar="auto|N|N,N,…", help="Prefill chunk sizes in tokens; the last one repeats."),
    ] = "auto",
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object an output at the end instead.")] = False,
    n: Annotated[
        int, typer.Option("--n", min=1, max=MAX_OUTPUTS, help="Outputs of the prompt; several come at the end.")
    ] = 1,
) -> None:
    """Continue a prompt; the text streams to standard output, everything else goes to standard error.

    Unset sampling flags take the values of the model's generation_config.json; see --generation-config.
    """
    check_options(context, remote.server)
    chunks, cluster = parse_chunks(chunk), processes.config
    if remote.server is not None:
        ids = asked.prompt_ids
        source = read_ids(ids) if ids is not None else read_text(asked.prompt, asked.prompt_file)
        connected = connection(remote.server, remote.auth_token_file, remote.server_ca)
        with reader_may_leave():
            settings = given | {"add_special_tokens": asked.add_special_tokens, "priority": remote.priority}
            answer = stream_remote(connected, source, settings, remote.timeout, n, show_text=not json)
            first = answer.seed  # None from a server that does not tell
            seeds = [None if first is None else output_seed(first, index) for index in range(n)]
            scores = None if given["prompt_logprobs"] is None else prompt_json(answer.prompt_logprobs)
            _report(list(zip(answer.outputs, seeds, strict=True)), scores, json)
        return
    from medha_jax.engine import GenerationRequest, ModelFiles, check_stops, sized_for

    files = ModelFiles.read(model_directory(runtime.model), defaults)
    sampling, tokenizer = sampling_params(files.sampling, given), files.tokenizer
    check_stops(sampling, tokenizer)
    for note in files.notes:
        tell(f"warning: {note}")
    add_special = asked.add_special_tokens is not False
    prompt = read_prompt(asked.prompt, asked.prompt_file, asked.prompt_ids, tokenizer, add_special)
    request = GenerationRequest(prompt, sampling, files.eos_ids, chunks, n=n)
    with reader_may_leave():
        config = dataclasses.replace(runtime.config, prompt_logprobs=sampling.prompt_logprobs is not None)
        if cluster is None:
            from medha_jax.runtime import open_executor

            sized = sized_for(config, [request], _checked(request, config))
            answers, scores = _stream(open_executor(sized, tell), tokenizer, request, show_text=not json)
        else:
            from medha_jax.runtime.cluster import lead

            quiet_stdout()
            with ended_at_once():
                _checked(request, config)
                with lead(config, cluster, tell) as leading:
                    answers, scores = _stream(leading, tokenizer, request, show_text=not json)
        _report(answers, scores, json)


def _checked(request: GenerationRequest, config: RuntimeConfig) -> int:
    """Check a request before anything is loaded; returns the context in tokens."""
    from medha_jax.engine import check_request

    vocab, context = model_sizes(config)
    check_request(request, vocab, context)
    return context


def _report(
    answers: Sequence[tuple[Completion | AnswerOutput, int | None]],
    scores: Sequence[Mapping[str, Any]] | None,
    json: bool,
) -> None:
    """Report completions with their seeds, and the prompt's log-probabilities with the first one.

    The text of a lone one was shown as it came.
    """
    several = len(answers) > 1
    for index, (completion, seed) in enumerate(answers):
        if json:
            prompt = None if index else scores
            print(completion_json(completion, seed, index if several else None, prompt), flush=True)
        elif several:
            print(f"--- {index} ---\n{completion.text}", flush=True)
        print_summary(completion, text_shown=not json and not several, index=index if several else None)


def _stream(
    executor: Executor,
    tokenizer: Tokenizer,
    request: GenerationRequest,
    show_text: bool,
) -> tuple[list[tuple[Completion, int | None]], list[dict[str, Any]] | None]:
    """Generate; progress goes to stderr and, with `show_text`, each piece of a lone text to stdout as it comes.

    Returns each output's completion with the seed of its tokens, and the prompt's log-probabilities if they were asked
    for.
    """
    from medha_jax.engine import Completed, NewTokens, Prefilled, PromptScored, Queued
    from medha_jax.engine import generate_outputs as events

    clock, seeds = time.perf_counter, dict[int, int]()
    done: dict[int, Completion] = {}
    scores: list[dict[str, Any]] | None = None if request.sampling.prompt_logprobs is None else []
    with noted_interrupts() as check, PrefillProgress(len(request.prompt_ids), clock) as progress:
        for index, event in events(executor, tokenizer, request, clock):
            check()
            match event:
                case Queued():
                    seeds[index] = event.seed
                case Prefilled(done=computed):
                    progress.update(computed)
                case PromptScored(scores=some) if scores is not None:
                    scores += scores_json(some)
                case NewTokens(text=text):
                    progress.close()
                    if show_text and text and request.n == 1:
                        sys.stdout.write(text)
                        sys.stdout.flush()
                case Completed(completion=completion, request=totals):
                    done[index] = completion
                    if totals is not None:
                        return [(done[index], seeds[index]) for index in sorted(done)], scores
    raise RuntimeError("the engine ended without a Completed event")
