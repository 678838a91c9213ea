"""A thousand requests with random lengths, many of which are given up: nothing is left, and the others are exact."""

import asyncio
import os
import random
import subprocess
import sys
import urllib.request

from medha_jax.client import AsyncClient, Delta, Finished
from tests.server.conftest import CONTEXT
from tests.server.processes import ROOT, idle, refusal, wait_until

REQUESTS, CANCELLED, KILLED_CLIENTS, OF_EACH = 1000, 0.3, 6, 10
TIE = 1e-4  # between the two likeliest tokens, in nats: below, the rounding of another batch may decide
PROMPTS, LONGEST_OUTPUT, AT_ONCE = 24, 60, 64

DOOMED = """
import sys, random
from medha_jax.client import Client
draw = random.Random(int(sys.argv[2]))
client = Client(sys.argv[1])
streams = [
    client.generate([draw.randrange(2, 320) for _ in range(draw.randrange(1, 400))], max_tokens=100, ignore_eos=True)
    for _ in range(int(sys.argv[3]))
]
for stream in streams:
    next(stream)
print("running", flush=True)
sys.stdin.read()
"""


def prompts(draw):
    lengths = [draw.randrange(1, 40) for _ in range(PROMPTS - 4)] + [draw.randrange(200, 400) for _ in range(4)]
    return [[draw.randrange(2, 320) for _ in range(length)] for length in lengths]


def tokens(events):
    return [token for event in events if isinstance(event, Delta) for token in event.token_ids]


def test_a_thousand_requests_of_which_many_are_given_up(server, client):
    draw = random.Random(5)
    given = prompts(draw)
    wanted = dict(max_tokens=LONGEST_OUTPUT, temperature=0, ignore_eos=True)
    # greedy output for fewer tokens is the beginning of that for more
    alone = {}
    for number, prompt in enumerate(given):
        events = list(client.generate(prompt, **wanted, logprobs=2, cache_salt="alone"))
        entries = [entry for event in events if isinstance(event, Delta) for entry in event.logprobs]
        if min(entry.top[0][1] - entry.top[1][1] for entry in entries) > TIE:
            alone[number] = tokens(events)
    chosen_from = list(alone)
    assert len(alone) > PROMPTS / 2 and all(len(output) == LONGEST_OUTPUT for output in alone.values())
    wrong, survived = [], 0

    async def one(connected, slots, salt):
        nonlocal survived
        chosen, length = draw.choice(chosen_from), draw.randrange(1, LONGEST_OUTPUT + 1)
        given_up = draw.random() < CANCELLED
        after = draw.random() * 0.3
        async with slots:
            events = []
            stream = connected.generate(
                given[chosen], max_tokens=length, temperature=0, ignore_eos=True, cache_salt=salt
            )

            async def read():
                async for event in stream:
                    events.append(event)

            try:
                await asyncio.wait_for(read(), after if given_up else 120)
            except TimeoutError:
                assert given_up
                return
        survived += 1
        if tokens(events) != alone[chosen][:length] or not isinstance(events[-1], Finished):
            wrong.append((chosen, length))

    async def everything():
        slots = asyncio.Semaphore(AT_ONCE)
        async with AsyncClient(server.address) as connected:
            count = REQUESTS - KILLED_CLIENTS * OF_EACH
            tasks = [asyncio.create_task(one(connected, slots, str(number % 3))) for number in range(count)]
            for number in range(KILLED_CLIENTS):
                await asyncio.to_thread(kill_one, server.address, number, draw.random() * 0.5)
            await asyncio.gather(*tasks)

    asyncio.run(everything())
    assert not wrong, f"{len(wrong)} of {survived} outputs differ from those alone: {wrong[:5]}"
    assert survived >= (REQUESTS - KILLED_CLIENTS * OF_EACH) * (1 - CANCELLED) * 0.9
    wait_until(lambda: idle(client), 5)
    assert client.load().waiting_tokens == 0


def kill_one(address, seed, after):
    """A client process with several streams, killed in the middle of them."""
    process = subprocess.Popen(
        [sys.executable, "-c", DOOMED, address, str(seed), str(OF_EACH)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    with process:
        assert process.stdout.readline() == "running\n"
        try:
            process.wait(after)
        except subprocess.TimeoutExpired:
            process.kill()
        process.wait()


def test_gauges_are_back_after_it(server, client):
    wait_until(lambda: idle(client), 5)
    port = next(line for line in server.errors.splitlines() if line.startswith("metrics on")).split()[-1]
    text = urllib.request.urlopen(port, timeout=10).read().decode()
    values = dict(line.rsplit(" ", 1) for line in text.splitlines() if line and not line.startswith("#"))
    assert float(values["medha_num_requests_running"]) == 0
    assert float(values["medha_num_requests_waiting"]) == 0
    assert float(values["medha_generation_tokens_total"]) > 0


def test_prompts_of_the_whole_context_and_its_smallest_neighbour(server, client):
    longest = [5] * (CONTEXT - 1)
    *_, last = client.generate(longest, ignore_eos=True)
    assert last.usage.output_tokens == 1 and last.usage.prompt_tokens == CONTEXT - 1
    *_, last = client.generate(longest[:-1], ignore_eos=True)
    assert last.usage.output_tokens == 2
    assert refusal(client.generate([5] * CONTEXT)).code == "OUT_OF_RANGE"
