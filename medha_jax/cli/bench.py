"""`medha-jax bench`: what a server does under load, and how fast the engine is."""

from __future__ import annotations

import typer

from medha_jax.cli.bench_compare import compare
from medha_jax.cli.bench_convoy import convoy
from medha_jax.cli.bench_engine import engine
from medha_jax.cli.bench_search import search
from medha_jax.cli.bench_serve import serve

bench = typer.Typer(help="Measure a server under load, this one or one with the OpenAI API, and compare.")
bench.command()(serve)
bench.command()(convoy)
bench.command()(search)
bench.command()(engine)
bench.command()(compare)
