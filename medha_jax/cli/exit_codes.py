"""Exit codes of the commands; docs/commands.md says them to users."""

from __future__ import annotations

FAILED = 1
BAD_INPUT = 2
ENGINE_ENDED = 70
INTERRUPTED = 130
