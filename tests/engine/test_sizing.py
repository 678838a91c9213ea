from __future__ import annotations

from medha_jax.config import MeshConfig, RuntimeConfig
from medha_jax.engine import GenerationRequest, sized_for
from medha_jax.plan import SamplingParams


def test_a_runtime_for_one_request_has_what_it_needs_and_no_more() -> None:
    request = GenerationRequest((1,) * 1500, SamplingParams(max_tokens=100))
    sized = sized_for(RuntimeConfig(), [request], context=131072)
    assert sized.mesh.buckets.decode == (1,)
    assert sized.mesh.buckets.prefill == (1024,)
    assert sized.slots == 1
    assert 1600 <= sized.pool_tokens <= 1600 + sized.mesh.page_size


def test_stated_chunks_choose_the_shapes() -> None:
    request = GenerationRequest((1,) * 1500, SamplingParams(max_tokens=1), chunks=(7, 300, 1))
    assert sized_for(RuntimeConfig(), [request], 4096).mesh.buckets.prefill == (16, 1024)
    single = GenerationRequest((1,) * 5, SamplingParams(max_tokens=1), chunks=(1,))
    assert sized_for(RuntimeConfig(), [single], 4096).mesh.buckets.prefill == (16,)


def test_the_pool_never_exceeds_the_context_of_each_request() -> None:
    requests = [GenerationRequest((1,) * 10, SamplingParams())] * 3
    sized = sized_for(RuntimeConfig(max_context=1000, mesh=MeshConfig(page_size=8)), requests, context=4096)
    assert sized.pool_tokens == 3 * 1008
    assert sized.mesh.buckets.decode == (1, 3)


def test_further_outputs_need_a_slot_and_pages_of_their_own_beside_those_of_the_prompt() -> None:
    request = GenerationRequest((1,) * 1500, SamplingParams(max_tokens=100), n=4)
    sized = sized_for(RuntimeConfig(mesh=MeshConfig(page_size=16)), [request], context=131072)
    assert (sized.slots, sized.mesh.buckets.decode) == (4, (1, 4))
    one = 1600 - 93 * 16  # 1,500 tokens fill 93 pages
    assert 1600 + 3 * one <= sized.pool_tokens <= 1600 + 3 * one + 7 * 16
