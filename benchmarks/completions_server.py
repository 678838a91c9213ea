"""A small server with the OpenAI completions API, written from the API's description on bare sockets.

    python -m benchmarks.completions_server --tick-ms 5

It computes nothing: a request of n tokens gets n chunks, one per tick. It shares no code with the client that is
measured or tested against it. Under `/FAULT/v1` instead of `/v1` it has a fault, one of FAULTS.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
from typing import Any

FAULTS = {
    "status-429": "refuses with 429 and an error object",
    "status-500": "refuses with 500 and a page of HTML",
    "error": "an error object after three chunks, then the end of the stream",
    "truncated": "ends the stream after three chunks, without [DONE]",
    "reset": "breaks the connection after three chunks",
    "drop": "breaks the connection before it answers",
    "malformed": "a chunk that is no JSON, after three",
    "list": "a chunk that is a JSON list",
    "choices-a-text": "a chunk whose choices are a text",
    "bare-error": "an error's object without the word error, then [DONE]",
    "abort": "gives the request up, with that as the finish reason",
    "cut-event": "ends in the middle of an event",
    "plain": "answers with one JSON object, as if no stream was asked for",
    "nothing": "ends the stream well, without a token",
    "endless": "sends three chunks and then nothing more",
    "no-usage": "does not say the usage",
    "usage-alone": "the usage in an object without choices",
    "usage-null-choices": "the usage beside choices that are null",
    "usage-first": "the prompt's usage before the first chunk, and no other",
    "usage-always": "the usage so far in every chunk",
    "usage-both": "the prompt's usage first, the output's last",
    "usage-huge": "a usage of 2^40 output tokens",
    "pings": "comments, empty events and objects without choices between the chunks",
    "no-done": "ends after the last chunk, without [DONE]",
    "done-cut": "no line end after [DONE]",
    "two-a-chunk": "two tokens a chunk",
    "last-empty": "says why it ends in a chunk of its own",
    "last-silent": "the last token has no text",
    "crlf": "lines end in CR LF, with comments and other fields between",
    "dribble": "a byte at a time",
    "no-models": "does not list its models",
}
MIDDLE = (
    *("error", "truncated", "reset", "malformed", "list"),
    *("choices-a-text", "bare-error", "abort", "cut-event"),
)  # faults after three chunks
SILENT = ("no-usage", "usage-first", "usage-always")  # have no usage at the end
PING = b'data: {"type": "ping"}\n\ndata: {"object": "text_completion", "choices": []}\n\n'
MODEL = "simulated"


class Server:
    """Serves connections. `seen` holds the bodies of the requests; `open` counts the running streams."""

    def __init__(self, tick_s: float) -> None:
        self._tick_s = tick_s
        self.seen: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.open = 0

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve a connection until it ends."""
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while line := await reader.readline():
                method, path, _ = line.decode().split()
                headers = {}
                while (field := (await reader.readline()).decode().strip()) != "":
                    name, _, value = field.partition(":")
                    headers[name.lower()] = value.strip()
                body = await reader.readexactly(int(headers.get("content-length", 0)))
                self.headers.append(headers)
                if not await self._answer(method, path, body, reader, writer):
                    break
        writer.close()

    async def _answer(
        self, method: str, path: str, body: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bool:
        """Answer a request; returns whether the connection stays open."""
        *before, _, last = path.strip("/").split("/")
        fault = before[0] if before else ""
        if method == "GET" and last == "models":
            if fault == "no-models":
                return await send(writer, 404, "text/plain", b"there is no such thing")
            models = {"object": "list", "data": [{"id": MODEL, "object": "model", "max_model_len": 8192}]}
            return await send(writer, 200, "application/json", json.dumps(models).encode())
        wanted = json.loads(body)
        self.seen.append(wanted)
        if fault == "drop":
            writer.transport.abort()
            return False
        if fault == "status-429":
            error = {"error": {"message": "too many requests wait", "type": "rate_limit_error", "code": 429}}
            return await send(writer, 429, "application/json", json.dumps(error).encode())
        if fault == "status-500":
            return await send(writer, 500, "text/html", b"<html>\n<body>Internal Server Error</body>\n</html>")
        if fault == "plain" or not wanted.get("stream"):
            whole = {"object": "text_completion", "choices": [{"index": 0, "text": "a", "finish_reason": "length"}]}
            return await send(writer, 200, "application/json", json.dumps(whole).encode())
        self.open += 1
        try:
            return await self._stream(wanted, fault, reader, writer)
        finally:
            self.open -= 1

    async def _stream(
        self, wanted: dict[str, Any], fault: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bool:
        """Stream a completion as server-sent events, in chunked transfer encoding."""
        writer.write(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        tokens, loop = wanted["max_tokens"], asyncio.get_running_loop()
        per_chunk = 2 if fault == "two-a-chunk" else 1
        due = loop.time()
        count = 0 if fault == "nothing" else -(-tokens // per_chunk)
        for number in range(count):
            due += self._tick_s
            await asyncio.sleep(due - loop.time())
            if number == 3 and fault == "endless":
                await reader.read(1)  # nothing more comes until the client goes
                return False
            if number == 3 and fault in MIDDLE:
                return await self._fail(fault, writer)
            if number == 0 and fault in ("usage-first", "usage-both"):
                await event(writer, {"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 0}}, fault)
            if fault == "pings":
                await raw_bytes(writer, b": ping\n\nevent: ping\ndata: {}\n\ndata:\n\n" + PING)
            last = number == count - 1 and fault != "last-empty"
            text = "" if last and fault == "last-silent" else "a" * per_chunk
            chunk = chunk_of(text, "length" if last else None)
            if fault == "usage-always":
                chunk["usage"] = {"prompt_tokens": len(wanted["prompt"]), "completion_tokens": number + 1}
            await event(writer, chunk, fault)
        if fault == "last-empty":
            await event(writer, chunk_of("", "length"), fault)
        if fault not in SILENT and wanted.get("stream_options", {}).get("include_usage"):
            prompt = wanted["prompt"]
            usage = {"prompt_tokens": len(prompt), "completion_tokens": tokens if count else 0}
            usage["total_tokens"] = sum(usage.values())
            details = {"prompt_tokens_details": {"cached_tokens": 1}}
            if fault == "usage-huge":
                usage["completion_tokens"] = 2**40
            if fault == "usage-both":
                usage["prompt_tokens"] = None
            last_one: dict[str, Any] = {"object": "text_completion", "choices": [], "usage": usage | details}
            if fault == "usage-null-choices":
                last_one["choices"] = None
            if fault == "usage-alone":
                del last_one["choices"]
            await event(writer, last_one, fault)
        if fault == "done-cut":
            await raw_bytes(writer, b"data: [DONE]")
        elif fault != "no-done":
            await event(writer, "[DONE]", fault)
        writer.write(b"0\r\n\r\n")
        await writer.drain()
        return True

    async def _fail(self, fault: str, writer: asyncio.StreamWriter) -> bool:
        """End a stream with a fault."""
        if fault == "reset":
            writer.transport.abort()
            return False
        wrong = {
            "error": {"error": {"message": "the engine\ndied", "type": "internal", "code": 500}},
            "malformed": '{"choices": [{"index": 0, "te',
            "list": [1, 2],
            "choices-a-text": {"object": "text_completion", "choices": "a"},
            "bare-error": {"message": "the engine died", "type": "InternalServerError", "code": 500},
            "abort": chunk_of("", "abort"),
        }
        if fault in wrong:
            await event(writer, wrong[fault], fault)
        if fault == "cut-event":
            await raw_bytes(writer, b'data: {"choices": [{"ind')
        if fault in ("bare-error", "abort"):
            await event(writer, "[DONE]", fault)
        writer.write(b"0\r\n\r\n")
        await writer.drain()
        return True


def chunk_of(text: str, reason: str | None) -> dict[str, Any]:
    """A chunk in the API's form."""
    choice = {"index": 0, "text": text, "logprobs": None, "finish_reason": reason}
    return {
        "id": "cmpl-1",
        "object": "text_completion",
        "created": 0,
        "model": MODEL,
        "choices": [choice],
        "usage": None,
    }


async def event(writer: asyncio.StreamWriter, data: Any, fault: str) -> None:
    """Send one event."""
    text = data if isinstance(data, str) else json.dumps(data)
    said = f": a comment\r\nevent: chunk\r\ndata:{text}\r\nid: 1\r\n\r\n" if fault == "crlf" else f"data: {text}\n\n"
    raw = said.encode()
    for piece in [raw[i : i + 1] for i in range(len(raw))] if fault == "dribble" else [raw]:
        writer.write(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
        if fault == "dribble":
            await writer.drain()
    await writer.drain()


async def raw_bytes(writer: asyncio.StreamWriter, data: bytes) -> None:
    """Send bytes of the stream as they are."""
    writer.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
    await writer.drain()


async def send(writer: asyncio.StreamWriter, status: int, kind: str, body: bytes) -> bool:
    """Send a complete response; returns True: the connection stays open."""
    head = f"HTTP/1.1 {status} Status\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n"
    writer.write(head.encode() + body)
    await writer.drain()
    return True


async def main() -> None:
    """Serve until it is killed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tick-ms", type=float, default=5.0)
    given = parser.parse_args()
    serving = await asyncio.start_server(Server(given.tick_ms / 1000).connected, "127.0.0.1", 0)
    host, port = serving.sockets[0].getsockname()
    print(f"serving {MODEL} on {host}:{port}", flush=True)
    await serving.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
