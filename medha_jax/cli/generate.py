"""`medha-jax generate`: one prompt in, its continuation out."""

from __future__ import annotations

import sys
import time
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from medha_jax.cli.attention import (
    AttentionKind,
    AttentionOption,
    KvDtype,
    KvDtypeOption,
    XlaOptions,
    XlaOptionsOption,
)
from medha_jax.cli.cluster import (
    HEARTBEAT,
    CoordinatorOption,
    HeartbeatOption,
    InsecureOption,
    PlansOption,
    ProcessesOption,
    ProcessIdOption,
    TlsCaOption,
    TlsCertOption,
    TlsKeyOption,
    cluster_config,
    ended_at_once,
    quiet_stdout,
)
from medha_jax.cli.interrupt import noted_interrupts
from medha_jax.cli.mesh import MeshOption, PageSizeOption, TokensPerGroupOption, mesh_config
from medha_jax.cli.opening import lead_runtime, open_runtime
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
from medha_jax.cli.remote import (
    RemoteCompletion,
    ServerCaOption,
    ServerOption,
    TimeoutOption,
    TokenFileOption,
    check_options,
    connection,
)
from medha_jax.cli.remote import stream as stream_remote
from medha_jax.cli.report import as_json, print_summary, reader_may_leave
from medha_jax.config import RuntimeConfig
from medha_jax.text import MAX_TOKEN_ID, GenerationDefaults, Tokenizer

if TYPE_CHECKING:
    from medha_jax.engine import Completion, GenerationRequest
    from medha_jax.runtime import Executor


class Dtype(StrEnum):
    """Precision of weights, activations and KV; `auto` is float32 on a CPU and bfloat16 elsewhere."""

    AUTO = "auto"
    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"


_PROMPT, _SAMPLING, _END = "Prompt (exactly one)", "Sampling", "Where to end"


def generate(
    context: typer.Context,
    model: Annotated[
        str,
        typer.Option(metavar="tiny|DIR", help="The bundled tiny model, or a Hugging Face model directory."),
    ] = "tiny",
    prompt: Annotated[
        str | None,
        typer.Option(metavar="TEXT", help="The prompt itself.", rich_help_panel=_PROMPT),
    ] = None,
    prompt_file: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="A UTF-8 text file; - is standard input.", rich_help_panel=_PROMPT),
    ] = None,
    prompt_ids: Annotated[
        str | None,
        typer.Option(metavar="1,2,3", help="Token ids; - is standard input.", rich_help_panel=_PROMPT),
    ] = None,
    temperature: Annotated[
        float | None,
        typer.Option(help="0 always takes the likeliest token.", rich_help_panel=_SAMPLING),
    ] = None,
    top_k: Annotated[
        int | None,
        typer.Option(help="Sample from the K likeliest tokens; 0 or -1: all.", rich_help_panel=_SAMPLING),
    ] = None,
    top_p: Annotated[
        float | None,
        typer.Option(
            help="Sample from the likeliest tokens that hold this probability; in (0, 1].",
            rich_help_panel=_SAMPLING,
        ),
    ] = None,
    min_p: Annotated[
        float | None,
        typer.Option(
            help="Drop tokens below this share of the likeliest one's probability; in [0, 1].",
            rich_help_panel=_SAMPLING,
        ),
    ] = None,
    repetition_penalty: Annotated[
        float | None,
        typer.Option(help="Above 1 avoids tokens seen before; in (0, 2].", rich_help_panel=_SAMPLING),
    ] = None,
    presence_penalty: Annotated[
        float | None,
        typer.Option(help="Subtracted once from generated tokens; in [-2, 2].", rich_help_panel=_SAMPLING),
    ] = None,
    frequency_penalty: Annotated[
        float | None,
        typer.Option(help="Subtracted per earlier occurrence; in [-2, 2].", rich_help_panel=_SAMPLING),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(help="Repeats a sampled generation.", rich_help_panel=_SAMPLING),
    ] = None,
    logprobs: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="With --json: log-probabilities of the tokens and the N likeliest; 0 to 20.",
            rich_help_panel=_SAMPLING,
        ),
    ] = None,
    max_tokens: Annotated[
        int | None,
        typer.Option(help="Default: until the context is full.", rich_help_panel=_END),
    ] = None,
    min_tokens: Annotated[
        int | None,
        typer.Option(help="Do not stop before this many.", rich_help_panel=_END),
    ] = None,
    stop: Annotated[
        list[str] | None,
        typer.Option(metavar="TEXT", help="End at this text (cut off); repeatable.", rich_help_panel=_END),
    ] = None,
    stop_token_id: Annotated[
        list[int] | None,
        typer.Option(
            min=0, max=MAX_TOKEN_ID, metavar="ID", help="End at this token; repeatable.", rich_help_panel=_END
        ),
    ] = None,
    include_stop: Annotated[
        bool,
        typer.Option("--include-stop", help="Show what ended the text.", rich_help_panel=_END),
    ] = False,
    ignore_eos: Annotated[
        bool,
        typer.Option("--ignore-eos", help="Go on after the model's own end.", rich_help_panel=_END),
    ] = False,
    chunk: Annotated[
        str,
        typer.Option(metavar="auto|N|N,N,…", help="Prefill chunk sizes in tokens; the last one repeats."),
    ] = "auto",
    dtype: Annotated[Dtype, typer.Option(help="auto: float32 on a CPU, else bfloat16.")] = Dtype.AUTO,
    kv_dtype: KvDtypeOption = KvDtype.AUTO,
    attention: AttentionOption = AttentionKind.AUTO,
    xla_options: XlaOptionsOption = XlaOptions.AUTO,
    mesh: MeshOption = "tp=1",
    page_size: PageSizeOption = None,
    tokens_per_group: TokensPerGroupOption = None,
    max_context: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Prompt and output together, in tokens. Default: the model's."),
    ] = None,
    coordinator: CoordinatorOption = None,
    processes: ProcessesOption = None,
    process_id: ProcessIdOption = None,
    plans: PlansOption = None,
    heartbeat_seconds: HeartbeatOption = HEARTBEAT,
    tls_cert: TlsCertOption = None,
    tls_key: TlsKeyOption = None,
    tls_ca: TlsCaOption = None,
    insecure: InsecureOption = False,
    server: ServerOption = None,
    auth_token_file: TokenFileOption = None,
    server_ca: ServerCaOption = None,
    timeout: TimeoutOption = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object at the end instead.")] = False,
) -> None:
    """Continue a prompt; the text streams to standard output, everything else goes to standard error.

    Unset sampling flags take the values of the model's generation_config.json.
    """
    one_source(prompt, prompt_file, prompt_ids)
    check_options(context, server)
    chunks = parse_chunks(chunk)
    cluster = cluster_config(
        coordinator, processes, process_id, plans, heartbeat_seconds, tls_cert, tls_key, tls_ca, insecure
    )
    given = dict(
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        presence_penalty=presence_penalty,
        frequency_penalty=frequency_penalty,
        seed=seed,
        max_tokens=max_tokens,
        min_tokens=min_tokens,
        stop_token_ids=tuple(stop_token_id or ()),
        stop=tuple(stop or ()),
        include_stop=include_stop,
        ignore_eos=ignore_eos,
        logprobs=logprobs,
    )
    if server is not None:
        source = read_ids(prompt_ids) if prompt_ids is not None else read_text(prompt, prompt_file)
        connected = connection(server, auth_token_file, server_ca)
        with reader_may_leave():
            _report(stream_remote(connected, source, given, timeout, show_text=not json), json)
        return
    directory = model_directory(model)
    defaults = GenerationDefaults.from_directory(directory)
    sampling = sampling_params(directory, defaults, given)
    tokenizer = Tokenizer.from_directory(directory)
    ids = read_prompt(prompt, prompt_file, prompt_ids, tokenizer)

    from medha_jax.engine import GenerationRequest

    request = GenerationRequest(ids, sampling, defaults.eos_ids, chunks)
    with reader_may_leave():
        layout = mesh_config(mesh, page_size=page_size, tokens_per_group=tokens_per_group)
        config = RuntimeConfig(
            model=directory,
            dtype=str(dtype),
            kv_dtype=str(kv_dtype),
            attention=str(attention),
            xla_options=str(xla_options),
            max_context=max_context,
            mesh=layout,
        )
        if cluster is None:
            completion = _stream(open_runtime(request, config), tokenizer, request, show_text=not json)
        else:
            quiet_stdout()
            with ended_at_once(), lead_runtime(request, config, cluster) as leading:
                completion = _stream(leading, tokenizer, request, show_text=not json)
        _report(completion, json)


def _report(completion: Completion | RemoteCompletion, json: bool) -> None:
    if json:
        print(as_json(completion), flush=True)
    print_summary(completion, text_shown=not json)


def _stream(
    executor: Executor,
    tokenizer: Tokenizer,
    request: GenerationRequest,
    show_text: bool,
) -> Completion:
    """Generate; progress goes to stderr and, with `show_text`, each piece of text to stdout as it comes."""
    from medha_jax.engine import Delta, Finished, Prefilled
    from medha_jax.engine import generate as events

    clock = time.perf_counter
    with noted_interrupts() as check, PrefillProgress(len(request.prompt_ids), clock) as progress:
        for event in events(executor, tokenizer, request, clock):
            check()
            match event:
                case Prefilled(done=done):
                    progress.update(done)
                case Delta(text=text):
                    progress.close()
                    if show_text and text:
                        sys.stdout.write(text)
                        sys.stdout.flush()
                case Finished(completion=completion):
                    return completion
    raise RuntimeError("the engine ended without a Finished event")
