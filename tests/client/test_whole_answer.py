"""Whole answers: put together from events, and from a server whose mesh is simulated."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medha_jax.client import (
    Accepted,
    Answer,
    AnswerBuilder,
    AsyncClient,
    Client,
    Delta,
    Finished,
    PromptLogprobs,
    PromptProgress,
    ServerError,
    Timings,
    TokenLogprob,
    Usage,
)
from tests.server.processes import SIMULATED, ServerProcess, idle, wait_until

TIMINGS = Timings(0.1, 0.2, 0.3, 0.4, 0.7, (5,), 0, None)


@pytest.fixture(scope="module")
def server():
    with ServerProcess(*SIMULATED, "--tick-ms", 2) as started:
        yield started


@given(st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=6), min_size=1, max_size=4), st.randoms())
def test_outputs_are_put_together_whatever_comes_between(outputs, draw):
    """Tokens of several outputs in any order, one a delta; each output's own order stays."""
    left, building = [list(ids) for ids in outputs], AnswerBuilder()
    building.add(Accepted("name", 0, None, 7))
    scores = [TokenLogprob(token, -2.0, ()) for token in range(4)]
    building.add(PromptLogprobs(1, tuple(scores[:3])))
    building.add(PromptLogprobs(4, tuple(scores[3:])))
    while any(left):
        index = draw.choice([at for at, ids in enumerate(left) if ids])
        token = left[index].pop(0)
        building.add(Delta((token,), f"<{token}>", (TokenLogprob(token, -1.0, ()),), index))
        if not left[index]:
            building.add(PromptProgress(1, 1, None))
            building.add(Finished("length", None, Usage(5, 0, len(outputs[index])), TIMINGS, index))
    answer = building.answer()
    assert (answer.request_id, answer.seed, len(answer.outputs)) == ("name", 7, len(outputs))
    assert answer.prompt_logprobs == tuple(scores)
    for ids, output in zip(outputs, answer.outputs, strict=True):
        assert output.token_ids == tuple(ids) == tuple(entry.token_id for entry in output.logprobs)
        assert output.text == "".join(f"<{token}>" for token in ids)
        assert output.tpot_s == (None if len(ids) == 1 else pytest.approx(0.4 / (len(ids) - 1)))
        assert (output.prompt_tokens, output.ttft_s, output.chunks) == (5, 0.3, (5,))
    assert answer.text == answer.outputs[0].text


@pytest.mark.parametrize("events", [(), (Accepted("a", 0, None),), (Accepted("a", 0, None), Delta((1,), ""))])
def test_a_stream_without_its_end_is_an_error(events):
    building = AnswerBuilder()
    for event in events:
        building.add(event)
    with pytest.raises(ServerError, match="without a last event"):
        building.answer()


def test_a_whole_answer_is_what_the_stream_gives(server):
    asked = dict(max_tokens=6, ignore_eos=True, n=3, temperature=1.0, logprobs=2, seed=5)
    with Client(server.address) as client:
        answer = client.complete([5, 6, 7], **asked, request_id="named")
        deltas = [event for event in client.generate([5, 6, 7], **asked) if isinstance(event, Delta)]
    assert (answer.request_id, answer.seed, answer.prompt_logprobs) == ("named", 5, ())
    for index, output in enumerate(answer.outputs):
        own = [delta for delta in deltas if delta.index == index]
        assert output.token_ids == tuple(token for delta in own for token in delta.token_ids)
        assert output.text == "".join(delta.text for delta in own) and len(output.logprobs) == 6
        assert (output.finish_reason, output.usage.output_tokens, output.prompt_tokens) == ("length", 6, 3)

    async def same() -> Answer:
        async with AsyncClient(server.address) as client:
            return await client.complete([5, 6, 7], **asked)

    assert [one.token_ids for one in asyncio.run(same()).outputs] == [one.token_ids for one in answer.outputs]


def test_a_refusal_is_raised_and_a_cancelled_wait_ends_the_request(server):
    with Client(server.address) as client:
        with pytest.raises(ServerError, match="INVALID_ARGUMENT"):
            client.complete([])

        async def given_up() -> None:
            async with AsyncClient(server.address) as waiting:
                await asyncio.wait_for(waiting.complete([5], max_tokens=400, ignore_eos=True), 0.2)

        with pytest.raises(TimeoutError):
            asyncio.run(given_up())
        wait_until(lambda: idle(client), 30)
