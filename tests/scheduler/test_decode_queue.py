"""When a request's next token is due."""

from medha_jax.config import SchedulerConfig
from medha_jax.kv.holding import Holding
from medha_jax.scheduler.decode_queue import DecodeQueue
from medha_jax.scheduler.request import RequestState, SchedulerRequest


def decoding(number: int, reads_tokens: bool) -> RequestState:
    """A request whose prompt of two tokens was just planned."""
    request = SchedulerRequest((5, 6), 9, 0.0, reads_tokens=reads_tokens)
    state = RequestState.new(number, request, SchedulerConfig())
    state.admit(Holding((0,), [[0]], 64, 16), number)
    state.plan_prompt_chunk(2)
    return state


def test_who_reads_tokens_is_due_once_they_are_read_and_others_with_the_pipeline() -> None:
    queue = DecodeQueue(stages=1, patience=4)
    free, bound = decoding(0, False), decoding(1, True)
    queue.begin()
    queue.end((), (free, bound))
    for _ in range(2):
        assert queue.begin() == [free], "the other one's token is not read"
        free.plan_decode()
        queue.end((), (free,))
    bound.chunk_left(2, 7)
    assert queue.begin() == [free, bound]
    queue.end((bound,), ())
    assert queue.begin() == [bound], "it found no row, and stays due"
    bound.plan_decode()
    queue.end((), (bound,))
    bound.preempt()
    bound.chunk_left(3, 8)
    assert queue.begin() == [], "it has lost its pages in the meantime"
    queue.end((), ())
    assert queue.begin() == []
