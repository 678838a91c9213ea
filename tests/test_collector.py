import gc
import weakref

from medha_jax.collector import calm_collector, exempt_live_objects


class Node:
    """Refers to itself, so only the collector frees it."""

    def __init__(self) -> None:
        self.itself = self


def test_what_is_alive_is_left_out_and_what_is_garbage_is_freed_first():
    garbage, alive = weakref.ref(Node()), {"one": []}
    assert any(one is alive for one in gc.get_objects())
    exempt_live_objects()
    assert garbage() is None
    assert not any(one is alive for one in gc.get_objects())


def test_the_collector_is_as_before_after_a_run():
    before = gc.get_threshold()
    with calm_collector():
        assert gc.get_threshold() != before and gc.get_freeze_count() > 0
    assert gc.get_threshold() == before and gc.get_freeze_count() == 0
