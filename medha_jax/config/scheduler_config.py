"""Settings of a scheduler."""

from __future__ import annotations

from dataclasses import dataclass

from medha_jax.config.declaration import check_settings, setting

POLICIES = ("fcfs", "srtf", "edf", "lrs", "lars", "red")
PRIORITIES = (-2, -1, 0, 1, 2)  # the classes of requests; the first goes first
_LIMITS, _SCHEDULER, _ADVANCED = "Limits", "Scheduler", "Scheduler, advanced"


@dataclass(frozen=True)
class SchedulerConfig:
    """Settings of a scheduler. Times are in seconds.

    A tick without decodes may take twice `idle_tick_s` if reading the context takes most of it: a smaller chunk would
    hardly make it shorter.
    """

    policy: str = setting("red", "Order of the prompts.", choices=POLICIES, panel=_SCHEDULER)
    chunk_preemption: bool = setting(
        True,
        "Prompts take turns chunk by chunk; without, one runs to its end before the next begins.",
        panel=_SCHEDULER,
    )
    tpot_target_s: float = setting(
        0.05,
        "Per output token, for requests that state none.",
        above=0,
        option="tpot_target_ms",
        per=1000,
        panel=_SCHEDULER,
    )
    prefix_cache: bool = setting(True, "Find pages of earlier prompts again by their tokens.", panel=_SCHEDULER)
    max_waiting: int = setting(4096, "Requests that wait.", at_least=1, option="max_queue", panel=_LIMITS)
    max_waiting_tokens: int | None = setting(
        None,
        "Prompt tokens of all that wait; a lone one may have more. Default: 4 times what the KV pools hold.",
        at_least=1,
        option="max_queue_tokens",
        panel=_LIMITS,
    )
    max_tenant_waiting_tokens: int | None = setting(
        None,
        "Prompt tokens of one tenant that wait; a lone one may have more. Default: as --max-queue-tokens.",
        at_least=1,
        option="tenant_queue_tokens",
        panel=_LIMITS,
    )
    deadline_margin: float = setting(
        0.3,
        "Part of the time to its deadline within which lars aims to finish a prompt.",
        above=0,
        at_most=1,
        panel=_ADVANCED,
    )
    relegated_share: float = setting(
        0.05,
        "Part of the time that red guarantees to requests that have missed their deadline.",
        above=0,
        below=1,
        panel=_ADVANCED,
    )
    relegated_tokens: int | None = setting(
        None,
        "KV tokens that their prompts may keep while others are served, beside those of the next one. Default: half of "
        "the pool.",
        at_least=1,
        panel=_ADVANCED,
    )
    rho_max: float = setting(
        0.4, "Most of a tick that a long prompt with slack leaves to others.", at_least=0, below=1, panel=_ADVANCED
    )
    ttft_multiple: float = setting(
        1.5, "A request without a deadline gets this multiple of its prefill alone.", above=0, panel=_ADVANCED
    )
    ttft_floor_s: float = setting(0.5, "And at least this, in seconds.", above=0, panel=_ADVANCED)
    tpot_floor_s: float = setting(
        0.01,
        "Stated targets below are raised to it, so that no client holds up all others.",
        above=0,
        option="tpot_floor_ms",
        per=1000,
        panel=_ADVANCED,
    )
    idle_tick_s: float = setting(
        0.2,
        "What a tick without decodes aims at, if it finishes a prompt; a new request waits for its end.",
        above=0,
        panel=_ADVANCED,
    )
    slice_s: float = setting(
        0.05,
        "What a slice of a long prompt's layers aims at; a new request waits for its end.",
        above=0,
        option="slice_ms",
        per=1000,
        panel=_ADVANCED,
    )
    long_tokens: int = setting(
        65536,
        "Prompts from this length on are long: one a tick and group; they yield when they have slack.",
        at_least=1,
        panel=_ADVANCED,
    )
    ageing_ticks: int = setting(
        20, "Once in this many ticks the admitted prompt that waited longest goes first.", at_least=1, panel=_ADVANCED
    )
    preemption: bool = setting(
        True, "A more urgent request may take the pages and the slot of a less urgent one.", panel=_ADVANCED
    )
    max_preemptions: int = setting(3, "Times that a request can lose its pages.", at_least=0, panel=_ADVANCED)
    growth_pages: int = setting(
        1,
        "KV pages kept free for the output of each running request when another one is admitted.",
        at_least=0,
        panel=_ADVANCED,
    )
    reserve_output: bool = setting(
        False, "A request owns pages for all of its output before it runs, as a comparison.", panel=_ADVANCED
    )
    bypass_s: float = setting(
        10.0,
        "Seconds that requests may pass a more urgent one that does not fit; after as many a preempted one goes first.",
        at_least=0,
        panel=_ADVANCED,
    )

    priority_share: float = setting(
        0.1,
        "Part of the time that prompts get, oldest first, though others of an earlier priority wait. Under red those "
        "get relegated_share once they have missed their deadline.",
        above=0,
        below=1,
        panel=_ADVANCED,
    )

    def __post_init__(self) -> None:
        check_settings(self)

    @property
    def default_deadline_words(self) -> str:
        """`default_deadline_s` for readers: `max(1.5 x alone, 0.5 s)`."""
        return f"max({self.ttft_multiple:g} x alone, {self.ttft_floor_s:g} s)"

    def default_deadline_s(self, alone_s: float) -> float:
        """Seconds to the first token of a request without a target, from the seconds of its prefill alone.

        Medha's rule: `max(ttft_multiple * alone, ttft_floor_s)`.
        """
        return max(self.ttft_multiple * alone_s, self.ttft_floor_s)
