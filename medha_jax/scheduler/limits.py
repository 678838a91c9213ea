"""How many requests may wait."""

from __future__ import annotations

from medha_jax.config import SchedulerConfig


class QueueFullError(RuntimeError):
    """As many requests wait as may; the caller should come again later."""


def check_queue(config: SchedulerConfig, waiting: int, tokens: int, prompt: int) -> None:
    """Check that one more request may wait.

    Args:
        config: the limits.
        waiting: requests that wait.
        tokens: of their prompts.
        prompt: tokens of the new one.

    Raises:
        QueueFullError: it may not; the message says what is allowed.
    """
    if waiting >= config.max_waiting:
        raise QueueFullError(f"{waiting} requests wait; allowed are {config.max_waiting}")
    most = config.max_waiting_tokens
    if most is not None and waiting and tokens + prompt > most:
        raise QueueFullError(
            f"requests with {tokens} tokens wait and this one has {prompt}; allowed are {most} together"
        )
