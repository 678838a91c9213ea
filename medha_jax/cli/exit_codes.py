"""Exit codes of the commands; docs/commands.md says them to users."""

from __future__ import annotations

from medha_jax.server.server_process import ENGINE_ENDED as ENGINE_ENDED

FAILED = 1
BAD_INPUT = 2
INTERRUPTED = 130
