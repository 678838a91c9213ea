"""`medha-jax bench`: a server under load, and the speed of the engine."""

from __future__ import annotations

import typer

from medha_jax.cli.bench_compare import bench_compare
from medha_jax.cli.bench_convoy import bench_convoy
from medha_jax.cli.bench_engine import bench_engine
from medha_jax.cli.bench_search import bench_search
from medha_jax.cli.bench_serve import bench_serve

bench = typer.Typer(help="Measure a server under load, this one or one with the OpenAI API, and compare.")
bench.command("serve")(bench_serve)
bench.command("convoy")(bench_convoy)
bench.command("search")(bench_search)
bench.command("engine")(bench_engine)
bench.command("compare")(bench_compare)
