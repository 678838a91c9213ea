"""`medha-jax bench convoy`: long prompts and short requests behind them, under several policies."""

from __future__ import annotations

import dataclasses
import json as jsons
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from medha_jax.cli.bench_options import ClientOptions, OutputOptions, PolicyOptions, ServerOptions
from medha_jax.cli.bench_run import Opened, complain, kept, spoken_to
from medha_jax.cli.bench_target import check_own, flags, opened
from medha_jax.cli.exit_codes import INTERRUPTED
from medha_jax.cli.opening import model_sizes, tell
from medha_jax.cli.option_groups import Shown, refusal, takes_groups
from medha_jax.cli.prompt import model_directory
from medha_jax.cli.standard_streams import print_result
from medha_jax.config import POLICIES, RuntimeConfig, setting

if TYPE_CHECKING:
    from medha_jax.bench.best_alone import BestAlone
    from medha_jax.bench.convoy import Convoy
    from medha_jax.workload import ConvoyConfig

WHOLE = "fcfs-whole"


@dataclasses.dataclass(frozen=True)
class ConvoyOptions:
    """The convoy, and the policies that serve it."""

    policies: str = setting(
        f"{WHOLE},fcfs,red",
        f"Of one's own servers, one after the other: {WHOLE} (first come, first served without turns), "
        f"{', '.join(POLICIES)}. Ratios are to the first.",
        metavar="NAME,…",
    )
    longs: int = setting(1, "Long requests, all at once.", at_least=1)
    long_prompt: int = setting(32768, "Tokens of a long prompt.", at_least=1)
    long_output: int = setting(16, "Tokens that a long request generates.", at_least=1)
    shorts: int = setting(10, "Short requests.", at_least=1)
    short_prompt: int = setting(128, "Tokens of a short prompt.", at_least=1)
    short_output: int = setting(16, "Tokens that it generates.", at_least=2)
    interval: float = setting(1.0, "Seconds between them.", at_least=0, metavar="S")
    seed: int = setting(0, "Of the prompts' content.", at_least=0)

    @property
    def config(self) -> ConvoyConfig:
        """The requests of the convoy."""
        from medha_jax.workload import ConvoyConfig

        shape = {one.name: getattr(self, one.name) for one in dataclasses.fields(self) if one.name != "policies"}
        return ConvoyConfig(**shape, first=self.interval)


@takes_groups
def bench_convoy(
    context: typer.Context,
    service: ServerOptions,
    client: ClientOptions,
    output: OutputOptions,
    asked: Annotated[ConvoyOptions, Shown(panel="The convoy")],
) -> int:
    """Long prompts and short ones behind them: who waits for whom, policy by policy.

    Every policy gets a server of its own and the same requests; with --server or --url there is that server's row only.
    Before the first server starts, the long prompt is measured at its best: with nobody else, by `medha-jax generate`.
    Before each convoy its requests are measured alone on the idle server.
    """
    from medha_jax.bench.convoy import json_row, run_convoy
    from medha_jax.cli.bench_tables import print_convoy
    from medha_jax.workload import build_convoy

    check_own(context, service)
    config, began = asked.config, datetime.now(UTC)
    requests = build_convoy(config).requests
    convoys: list[Convoy] = []
    stopped = False
    policies = [PolicyOptions()] if service.remote else _policies(asked.policies)
    by_length = client.deadline is not None or client.slo_ttft_ms is None

    async def measure(server: Opened) -> None:
        fitted = dataclasses.replace(config, vocabulary=server.vocabulary)
        one = await run_convoy(server.session, server.target.name, fitted, by_length, best)
        if one is not None:
            convoys.append(one)
            runs.append(server.run([one.repeat], fitted, alone=dataclasses.asdict(one.alone)))
            complain([one.repeat])

    with kept(output.out, "medha-jax bench convoy") as runs:
        best = None if service.remote else _best(service, config, client.vocabulary)
        try:
            for policy in policies:
                with opened(service, policy, requests) as target:
                    _, stopped = spoken_to(target, client, began, measure)
                if stopped:
                    break
        finally:  # the rows before a server that fails, or before Ctrl-C
            if convoys:
                print_result(
                    output.json,
                    lambda: jsons.dumps({"rows": [json_row(one, convoys[0]) for one in convoys]}),
                    lambda: print_convoy(convoys, service.tpot_target_ms, runs[0].stamp),
                )
    if stopped:
        return INTERRUPTED
    return int(any(json_row(one, one)["short_done"] == 0 for one in convoys))


def _best(service: ServerOptions, config: ConvoyConfig, vocabulary: int | None) -> BestAlone:
    """The first long prompt, if the context holds it, with nobody else on this machine, before a server has it."""
    from medha_jax.bench.best_alone import best_alone
    from medha_jax.workload import build_convoy

    known, context = model_sizes(RuntimeConfig(model=model_directory(service.model), max_context=service.max_context))
    if config.long_prompt + config.long_output > context:
        why = f"{config.long_prompt:,} + {config.long_output:,} tokens are more than the context of {context:,}"
        raise refusal("--long-prompt", why)
    workload = build_convoy(dataclasses.replace(config, vocabulary=min(known, vocabulary or known)))
    options = flags(model=service.model, mesh=service.mesh, max_context=service.max_context)
    first = workload.requests[0]
    return best_alone(options, workload.token_ids(first).tolist(), first.output_tokens, tell)


def _policies(text: str) -> list[PolicyOptions]:
    """Policies from a list of names, each of which is known and stands once."""
    allowed = [WHOLE, *POLICIES]
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if name not in allowed or names.count(name) > 1:
            what = "named twice" if name in allowed else "no policy"
            raise refusal("--policies", f"{name!r} is {what}; give some of {','.join(allowed)}, separated by commas")
    return [PolicyOptions("fcfs", False) if name == WHOLE else PolicyOptions(name) for name in names]
