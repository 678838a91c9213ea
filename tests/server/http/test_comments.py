"""Comments between the events of a stream, for readers of all habits."""

import asyncio
import json

import pytest
from aiohttp import ClientSession, web
from aiohttp.test_utils import TestServer

from medha_jax.protos import inference_pb2 as pb
from medha_jax.server.http import reply
from medha_jax.server.http.choices import CompletionForm
from medha_jax.server.http.completion_request import Asked
from medha_jax.server.http.reply import Head, StreamedReply
from medha_jax.server.http.settings_fields import Streaming
from medha_jax.server.refusal import unavailable

ACCEPTED = pb.GenerateEvent(accepted=pb.GenerationAccepted(prompt_tokens=3))
PROGRESS = pb.GenerateEvent(progress=pb.GenerationProgress(done_tokens=1, prompt_tokens=3))
DELTAS = [pb.GenerateEvent(delta=pb.GenerationDelta(text=text, token_ids=[7])) for text in "abc"]
FINISHED = pb.GenerateEvent(finished=pb.GenerationFinished(reason=pb.FINISH_REASON_LENGTH))


def read_as_it_comes(steps, after):
    """What a client reads of a stream, each time all that has come; the next step is made when it has read the last.

    Args:
        steps: coroutine functions of a reply, each of which writes.
        after: what is done once there are no more, if anything.
    """

    async def run():
        read = asyncio.Event()

        async def answer(request):
            asked = Asked("r", [], 1, Streaming(True, usage=True), 1)
            made = StreamedReply(asked, CompletionForm(None, str), Head("r", 1, "m"), request)
            await made.write(0, ACCEPTED, False)
            async with made.living():
                for step in steps:
                    await step(made)
                    await asyncio.wait_for(read.wait(), 10)
                    read.clear()
            return await after(made)

        app = web.Application()
        app.router.add_get("/", answer)
        async with TestServer(app) as server, ClientSession() as session, session.get(server.make_url("/")) as response:
            pieces = []
            async for piece in response.content.iter_any():
                pieces.append(piece)
                read.set()
            return pieces

    return asyncio.run(run())


def writes(event):
    return lambda made: made.write(0, event, False)


async def silence(made):
    """Nothing, until the stream says that it lives."""


def data_by_lines(pieces):
    """As the specification of server-sent events has it, for events of one line."""
    return [line[6:] for line in b"".join(pieces).split(b"\n") if line.startswith(b"data: ")]


def data_by_stripped_pieces(pieces):
    """As `vllm bench serve` reads: it cuts white space off the ends of each piece before it joins them."""
    waiting, found = b"", []
    for piece in pieces:
        waiting += piece.strip()
        *whole, waiting = waiting.split(b"\n\n")
        if waiting.startswith(b"data: "):  # its blank line may have been cut off
            whole.append(waiting)
            waiting = b""
        found += [one.strip().removeprefix(b"data: ") for one in whole if one.strip() and not one.startswith(b":")]
    assert not waiting.strip() or waiting.startswith(b":")
    return found


CASES = {
    "progress": [writes(PROGRESS), *map(writes, DELTAS), writes(FINISHED)],
    "progress twice": [writes(PROGRESS), writes(PROGRESS), *map(writes, DELTAS), writes(FINISHED)],
    "silence": [silence, silence, *map(writes, DELTAS), silence, writes(FINISHED)],
    "silence before the end": [*map(writes, DELTAS), writes(FINISHED), silence],
}


@pytest.mark.parametrize("reader", [data_by_lines, data_by_stripped_pieces])
@pytest.mark.parametrize("steps", CASES.values(), ids=CASES.keys())
def test_no_comment_takes_an_event_along(monkeypatch, steps, reader):
    monkeypatch.setattr(reply, "KEEP_ALIVE_SECONDS", 0.05)
    pieces = read_as_it_comes(steps, lambda made: made.finished())
    assert any(piece.startswith(b":") for piece in pieces)
    *events, usage, done = reader(pieces)
    assert done == b"[DONE]"
    assert json.loads(usage)["usage"]["completion_tokens"] == 3
    assert "".join(json.loads(event)["choices"][0]["text"] for event in events) == "abc"


@pytest.mark.parametrize("reader", [data_by_lines, data_by_stripped_pieces])
def test_no_comment_takes_an_error_along(reader):
    pieces = read_as_it_comes([writes(PROGRESS)], lambda made: made.refused(unavailable("the server ends")))
    error, done = reader(pieces)
    assert json.loads(error)["error"]["message"] == "the server ends"
    assert done == b"[DONE]"
