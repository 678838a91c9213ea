"""Who may import whom inside medha_jax: the one list, read by BUILD and by tools/check_build.py.

One line a part (a module or folder directly under medha_jax) with the parts that it imports, which stand above
it. To add a part, add its line; to add an arrow, add a name. `make lint` refuses an import that is not here,
and a name here that no file needs. Parts that must run without JAX are listed in pyproject.toml.
"""

IMPORTS = {
    "config": [],
    "text": [],
    "protos": [],
    "workload": [],
    "results": [],
    "plan": [],
    "mesh": ["config"],
    "models": [],
    "attention": [],
    "kv": [],
    "client": ["protos"],
    "checkpoints": ["models"],
    "runtime": ["attention", "checkpoints", "config", "kv", "mesh", "models", "plan", "protos"],
    "scheduler": ["config", "kv", "plan"],
    "engine": ["config", "kv", "plan", "runtime", "scheduler", "text"],
    "server": ["config", "engine", "plan", "protos", "text"],
    "bench": ["client", "results", "workload"],
    "simulate": ["config", "engine", "kv", "plan", "results", "scheduler", "workload"],
    "cli": [
        "bench",
        "checkpoints",
        "client",
        "config",
        "engine",
        "models",
        "plan",
        "results",
        "runtime",
        "scheduler",
        "server",
        "simulate",
        "text",
        "workload",
    ],
}
