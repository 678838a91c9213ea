"""Records of requests, and their figures, tables, plots and reports, for benchmarks and simulations. No JAX."""

from medha_jax.results.files import holds_results, read_run, read_runs, runs_json, write_run, write_runs
from medha_jax.results.group import Group
from medha_jax.results.metrics import FORMULAS
from medha_jax.results.outputs import Outputs
from medha_jax.results.records import Counted, RequestRecord, Status
from medha_jax.results.report import write_report
from medha_jax.results.run import Repeat, ResultsError, Run
from medha_jax.results.spread import Interval, Spread, interval, spread
from medha_jax.results.stamp import stamp
from medha_jax.results.summary import Lateness, Summary, summarise
from medha_jax.results.tables import Table, run_tables

__all__ = [
    "FORMULAS",
    "Counted",
    "Group",
    "Interval",
    "Lateness",
    "Outputs",
    "Repeat",
    "RequestRecord",
    "ResultsError",
    "Run",
    "Spread",
    "Status",
    "Summary",
    "Table",
    "holds_results",
    "interval",
    "read_run",
    "read_runs",
    "run_tables",
    "runs_json",
    "spread",
    "stamp",
    "summarise",
    "write_report",
    "write_run",
    "write_runs",
]
