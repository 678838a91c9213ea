import asyncio
import contextlib
import sys

from aiohttp.base_protocol import BaseProtocol
from aiohttp.streams import StreamReader
from aiohttp.test_utils import make_mocked_request

from medha_jax.server.http.http_call import HttpBody

DEPTHS = 200  # frames of tests and event loop are fewer


def test_a_body_that_is_let_go_where_nothing_can_be_called_leaves_no_word(monkeypatch):
    """JSON of lists within lists ends in a RecursionError; what is let go there has no depth left for a call."""
    unraisable = []
    monkeypatch.setattr(sys, "unraisablehook", unraisable.append)

    def let_go(bodies, depth):
        if depth:
            let_go(bodies, depth - 1)
        bodies.clear()

    async def run():
        for depth in range(sys.getrecursionlimit() - DEPTHS, sys.getrecursionlimit()):
            bodies = [HttpBody(make_mocked_request("POST", "/v1/completions", payload=whole(b"[[[")), 100)]
            assert await anext(bodies[0]) == b"[[["
            with contextlib.suppress(RecursionError):
                let_go(bodies, depth)

    asyncio.run(run())
    assert not unraisable


def test_a_body_comes_once():
    async def run():
        return [part async for part in HttpBody(make_mocked_request("POST", "/", payload=whole(b"{}")), 100)]

    assert asyncio.run(run()) == [b"{}"]


def whole(data):
    """A body that has come whole."""
    loop = asyncio.get_running_loop()
    stream = StreamReader(BaseProtocol(loop), 2**16, loop=loop)
    stream.feed_data(data)
    stream.feed_eof()
    return stream
