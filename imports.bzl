"""Who may import whom inside medha_jax: the one list, read by BUILD and by tools/check_build.py.

One line a part (a module or folder directly under medha_jax) with the parts that it imports, which stand above
it. To add a part, add its line; to add an arrow, add a name. `make lint` refuses an import that is not here,
and a name here that no file needs. Parts that must run without JAX are listed in pyproject.toml.
"""

IMPORTS = {
    "config": [],
    "net": [],
    "machine": [],
    "text": [],
    "token_ids": [],
    "protos": [],
    "workload": ["config"],
    "results": ["machine"],
    "plan": ["config"],
    "specs": ["config"],
    "mesh": ["config", "machine", "specs"],
    "models": ["specs"],
    "attention": ["specs"],
    "kv": ["plan", "specs"],
    "client": ["net", "protos"],
    "checkpoints": ["machine", "models", "specs"],
    "runtime": ["attention", "checkpoints", "config", "machine", "mesh", "models", "net", "plan", "protos", "specs", "token_ids"],
    "inspection": ["attention", "config", "machine", "mesh", "models", "runtime", "specs"],
    "scheduler": ["config", "kv", "plan", "specs", "token_ids"],
    "engine": ["config", "kv", "machine", "plan", "runtime", "scheduler", "specs", "text", "token_ids"],
    "server": ["config", "engine", "net", "plan", "protos", "runtime", "text", "token_ids"],
    "bench": ["client", "results", "workload"],
    "simulate": ["config", "engine", "plan", "results", "scheduler", "specs", "workload"],
    "cli": [
        "bench",
        "checkpoints",
        "client",
        "config",
        "engine",
        "inspection",
        "net",
        "plan",
        "results",
        "runtime",
        "server",
        "simulate",
        "specs",
        "text",
        "workload",
    ],
}
