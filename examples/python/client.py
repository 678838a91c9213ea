"""A client of a medha-jax server: streaming, targets, cancelling, and many requests at once.

medha-jax serve &
python examples/python/client.py 127.0.0.1:9320 'import unittest'
"""

import asyncio
import sys

from medha_jax.client import Accepted, AsyncClient, Client, Delta, Finished, ServerError


def stream(client: Client, prompt: str) -> str:
    """Print a completion as it comes, then what it took; returns its text."""
    text = ""
    for event in client.generate(prompt, max_tokens=40, temperature=0):
        match event:
            case Accepted():
                print(f"accepted; {event.position} requests wait before it")
            case Delta():
                text += event.text
                print(event.text, end="", flush=True)
            case Finished():
                used, took = event.usage, event.timings
                print(f"\n{event.reason}: {used.output_tokens} tokens, the first after {1000 * took.ttft_s:.0f} ms")
    return text


def with_targets(client: Client, prompt: str) -> bool | None:
    """Tell the scheduler what matters: the first token within 500 ms, then one each 50 ms.

    `on_deadline="drop"` ends the request instead if the first token is late. `timeout` is the call's gRPC deadline: the
    server ends the request then, whatever it has done.

    Returns:
        Whether the first token came in time.
    """
    events = client.generate(prompt, timeout=30, max_tokens=8, ttft_ms=500, tpot_ms=50, on_deadline="continue")
    for event in events:
        if isinstance(event, Finished):
            return event.timings.deadline_met
    raise AssertionError("a stream ends with Finished or with a ServerError")


def cancel(client: Client, prompt: str) -> int:
    """Stop after the first tokens. Closing the iterator ends the request in the server, too, and frees its pages.

    Returns:
        Tokens that were read.
    """
    events = client.generate(prompt, max_tokens=1000, ignore_eos=True)
    for event in events:
        if isinstance(event, Delta):
            events.close()
            return len(event.token_ids)
    return 0


async def together(server: str, prompts: list[str]) -> list[str]:
    """Complete several prompts at once; the server computes them in the same ticks."""
    async with AsyncClient(server) as client:
        waiting = (client.complete(prompt, max_tokens=12, temperature=0) for prompt in prompts)
        return [answer.text for answer in await asyncio.gather(*waiting)]


def main(server: str, prompt: str) -> int:
    """Show each of them; returns the process's exit status."""
    try:
        with Client(server) as client:
            stream(client, prompt)
            print(f"first token in time: {with_targets(client, prompt)}")
            print(f"cancelled after {cancel(client, prompt)} tokens")
        for text in asyncio.run(together(server, [prompt, "def main():", "class Test"])):
            print(repr(text))
    except ServerError as error:
        wait = "" if error.retry_s is None else f" (try again in {error.retry_s:.1f} s)"
        print(f"error: {error}{wait}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:3]))
