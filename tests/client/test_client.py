"""The clients against a server whose mesh is simulated."""

import asyncio

import pytest

from medha_jax.client import Accepted, AsyncClient, Client, Delta, Finished, PromptProgress, ServerError
from medha_jax.config import BUNDLED_MODEL
from medha_jax.text import Tokenizer
from tests.server.processes import SIMULATED, ServerProcess, idle, wait_until

WANTED = dict(max_tokens=12, ignore_eos=True)


@pytest.fixture(scope="module")
def server():
    with ServerProcess(*SIMULATED, "--tick-ms", 2, "--context", 200_000) as started:
        yield started


@pytest.fixture
def client(server):
    with Client(server.address) as connected:
        yield connected


def tokens(events):
    return [token for event in events if isinstance(event, Delta) for token in event.token_ids]


def test_events_come_in_order_and_typed(client):
    first, *deltas, last = client.generate("import unittest", **WANTED, logprobs=0, request_id="named")
    assert first == Accepted("named", 0, first.predicted_ttft_s, first.seed) and first.predicted_ttft_s >= 0
    assert all(isinstance(delta, Delta) for delta in deltas) and len(tokens(deltas)) == 12
    assert [entry.token_id for delta in deltas for entry in delta.logprobs] == tokens(deltas)
    assert isinstance(last, Finished) and (last.reason, last.matched) == ("length", None)
    assert (last.usage.prompt_tokens, last.usage.output_tokens) == (len(client.tokenize("import unittest")), 12)
    timings = last.timings
    assert timings.ttft_s == pytest.approx(timings.queue_s + timings.prefill_s, rel=0.01)
    assert timings.e2e_s == pytest.approx(timings.ttft_s + timings.decode_s, rel=0.01)
    assert timings.preemptions == 0 and sum(timings.chunk_tokens) == last.usage.prompt_tokens


def test_the_seed_is_told_stated_or_drawn(client):
    def seed(**stated):
        first, *_ = client.generate([5], max_tokens=1, **stated)
        return first.seed

    drawn = {seed() for _ in range(20)}
    assert len(drawn) == 20 and all(0 <= one < 2**63 for one in drawn) and max(drawn) > 2**53
    assert [seed(seed=one) for one in (0, 7, 2**63 - 1)] == [0, 7, 2**63 - 1]


def test_a_long_prompt_tells_how_far_it_is_if_it_is_asked():
    prompt = [5] * 8000
    with ServerProcess(*SIMULATED, "--tick-ms", 500, "--context", 8192) as slow, Client(slow.address) as client:
        first, *told, last = client.generate(prompt, max_tokens=1, progress=True)
        assert isinstance(first, Accepted) and isinstance(told[-1], Delta) and isinstance(last, Finished)
        assert len(told) > 2 and all(isinstance(one, PromptProgress) for one in told[:-1])
        done = [one.done_tokens for one in told[:-1]]
        assert done == sorted(set(done)) and done[0] > 0 and done[-1] < 8000
        assert {one.prompt_tokens for one in told[:-1]} == {8000}
        assert all(one.predicted_left_s > 0 for one in told[:-1])
        _, *silent, _ = client.generate(prompt[:100], max_tokens=1)
        assert all(isinstance(one, Delta) for one in silent)


def test_what_ended_the_text_is_told(client):
    *deltas, last = client.generate([5], max_tokens=12, stop=["AA"])
    assert (last.reason, last.matched) == ("stop", "AA")
    assert "".join(delta.text for delta in deltas if isinstance(delta, Delta)) == ""
    token = tokens(client.generate([5], max_tokens=1))[0]
    *_, last = client.generate([5], max_tokens=12, stop_token_ids=[token])
    assert (last.reason, last.matched, last.usage.output_tokens) == ("stop", token, 1)


def test_special_tokens_are_those_that_were_asked_for(client):
    """The simulated model's token of end has id 0 and the text <|endoftext|>; its tokenizer adds none."""
    for add in (None, True, False):
        assert client.tokenize("<|endoftext|>", add_special_tokens=add) == (0,)
        *_, last = client.generate("a", max_tokens=1, add_special_tokens=add, skip_special_tokens=add)
        assert last.usage.prompt_tokens == 1
    for prompt in ([5], [5] * 150_000):
        with pytest.raises(ValueError, match="add_special_tokens is for a text; the prompt is token ids"):
            client.generate(prompt, add_special_tokens=False)


@pytest.mark.parametrize(
    "prompt", [b"ab", bytearray(b"ab"), None, 3.5, {5: 6}, iter([5])], ids=lambda one: type(one).__name__
)
def test_what_is_neither_text_nor_ids_is_no_prompt(client, prompt):
    """Bytes are a sequence of numbers: they were taken for the ids of other tokens."""
    with pytest.raises(ValueError, match=r"the prompt is of type \w+; give text, or a sequence of token ids"):
        client.generate(prompt)


@pytest.mark.parametrize("bad", [1.5, "7", None])
@pytest.mark.parametrize("count", [1, 150_000])
def test_ids_are_whole_numbers_wherever_they_stand(client, bad, count):
    with pytest.raises(ValueError, match="token ids are whole numbers; one of them is not"):
        client.generate([*[5] * count, bad])


def test_a_long_prompt_goes_in_parts(client):
    *_, last = client.generate([5] * 150_000, max_tokens=2)
    assert (last.usage.prompt_tokens, last.usage.output_tokens) == (150_000, 2)


def text(events):
    return "".join(event.text for event in events if isinstance(event, Delta))


@pytest.mark.parametrize("prompt", ["import unittest<|endoftext|>\n", [5, 0, 7, 300], [5, 6, 0] * 50_000], ids=len)
def test_an_echo_is_the_prompt_before_the_first_token(client, prompt):
    stated = dict(max_tokens=12, ignore_eos=True, seed=3, logprobs=0)
    plain, echoed = (list(client.generate(prompt, echo=echo, **stated)) for echo in (False, True))
    assert isinstance(echoed[0], Accepted) and tokens(echoed) == tokens(plain) and len(tokens(plain)) == 12
    pieces = [event for event in echoed if isinstance(event, Delta) and not event.token_ids]
    assert echoed[1 : 1 + len(pieces)] == pieces and not any(piece.logprobs for piece in pieces)
    decode = Tokenizer.from_directory(BUNDLED_MODEL).decode
    assert text(pieces) == (prompt if isinstance(prompt, str) else decode(prompt))
    assert text(echoed) == text(pieces) + text(plain) and max(len(piece.text) for piece in pieces) <= 65536
    *whole, last = client.generate(prompt, echo=True, skip_special_tokens=False, **stated)
    assert text(whole).startswith(prompt if isinstance(prompt, str) else decode(prompt, False))
    assert last.usage.output_tokens == 12


def test_errors_have_the_servers_code_and_message(client):
    with pytest.raises(ServerError, match=r"INVALID_ARGUMENT: top_p is 2.0; allowed is \(0, 1\]") as raised:
        list(client.generate("a", top_p=2))
    assert raised.value.code == "INVALID_ARGUMENT" and raised.value.retry_s is None
    with pytest.raises(TypeError):
        client.generate("a", tempreature=1)
    with Client("127.0.0.1:9") as nobody, pytest.raises(ServerError, match="UNAVAILABLE"):
        nobody.model(timeout=5)


def test_asyncio(server):
    async def everything():
        async with AsyncClient(server.address) as client:
            assert (await client.model()).name == "simulated"
            assert await client.tokenize("a") == await client.tokenize("a", add_special_tokens=False)
            with pytest.raises(ValueError, match="add_special_tokens is for a text"):
                await anext(client.generate([5], add_special_tokens=True))
            first, *deltas, last = [event async for event in client.generate([5, 6], **WANTED)]
            assert isinstance(first, Accepted) and isinstance(last, Finished) and len(tokens(deltas)) == 12
            *_, last = [event async for event in client.generate([5] * 150_000, max_tokens=2)]
            assert last.usage.prompt_tokens == 150_000
            for refused in (200_000, 1_000_000):  # the second would go in more parts than the server reads
                with pytest.raises(ServerError, match="OUT_OF_RANGE"):
                    await anext(client.generate([5] * refused))
            # dropped, cancelled and aborted streams
            stream = client.generate([5], max_tokens=4000, ignore_eos=True)
            await anext(stream)
            await stream.aclose()
            task = asyncio.create_task(read(client, "cancelled"))
            await asyncio.sleep(0.1)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            task = asyncio.create_task(read(client, "aborted"))
            await asyncio.sleep(0.1)
            assert len(asyncio.all_tasks()) <= 3  # nothing waits to send more of what was refused
            assert await client.abort("aborted")
            with pytest.raises(ServerError, match="CANCELLED: the request was aborted"):
                await task
            assert not await client.abort("aborted")
            for _ in range(100):
                load = await client.load()
                if load.running == load.waiting == 0:
                    break
                await asyncio.sleep(0.01)
            assert load.running == load.waiting == 0

    async def read(client, name):
        async for _ in client.generate([5], max_tokens=4000, ignore_eos=True, request_id=name):
            pass

    asyncio.run(everything())


def test_closing_the_client_ends_what_runs(server, client):
    with Client(server.address) as other:
        stream = other.generate([5], max_tokens=4000, ignore_eos=True)
        next(stream)
    wait_until(lambda: idle(client))


def test_clients_need_no_jax():
    import subprocess
    import sys

    code = "import sys, medha_jax.client; assert 'jax' not in sys.modules and 'numpy' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
