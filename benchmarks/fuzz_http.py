"""Malformed HTTP requests of the OpenAI API, reproducible from a seed: absurd values, damaged JSON, broken HTTP."""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from typing import Any
from urllib.parse import urlsplit

from benchmarks.fuzz_messages import INTEGERS, NUMBERS, SIGNED, TEXTS, damaged

AT_ONCE = 16
SILENT_SECONDS = 2.0  # after which a request counts as one that lacks something
PATHS = (
    "/v1/completions",
    "/v1/chat/completions",
    "/tokenize",
    "/detokenize",
    "/v1/models",
    "/v1/nothing",
    "/load",
    "/health",
)
GOOD: dict[str, dict[str, Any]] = {
    "/v1/completions": {"prompt": "a", "max_tokens": 1},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "a"}], "max_tokens": 1},
    "/tokenize": {"prompt": "a"},
    "/detokenize": {"tokens": [5]},
}
NAMES = (
    *("model", "prompt", "stream", "stream_options", "temperature", "top_p", "min_p", "top_k", "seed", "min_tokens"),
    *("repetition_penalty", "presence_penalty", "frequency_penalty", "max_tokens", "max_completion_tokens", "n"),
    *("echo", "logprobs", "logit_bias", "stop", "stop_token_ids", "allowed_token_ids", "ignore_eos", "on_deadline"),
    *("cache_salt", "request_id", "priority", "user", "tokens", "add_special_tokens", "return_token_ids", "nothing"),
    *("messages", "tools", "tool_choice", "role", "content", "tool_calls", "chat_template_kwargs", "response_format"),
    *("structured_outputs", "regex", "json", "type", "function", "top_logprobs", "continue_final_message"),
)
HEADERS = ("x-request-timeout-ms", "x-slo-ttft-ms", "x-slo-tpot-ms", "x-request-id", "Content-Encoding", "Expect", "A")
VALUES = ("1", "-1", "nan", "1e400", "a b", "gzip", "deflate", "br", "100-continue", "200-ok", "\xff", "a" * 20_000)


def absurd(draw: random.Random, depth: int = 0) -> Any:
    """Any JSON value."""
    kind = draw.randrange(8 if depth < 3 else 5)
    if kind == 0:
        return draw.choice((None, True, False))
    if kind == 1:
        return draw.choice((*INTEGERS, *SIGNED, 10**400, 2**64))
    if kind == 2:
        return draw.choice(NUMBERS)
    if kind in (3, 4):
        return draw.choice((*TEXTS, "\ud800", "small"))
    if kind == 5:
        return {draw.choice((*NAMES, "5", "")): absurd(draw, depth + 1) for _ in range(draw.randrange(4))}
    # many only within: lists of many in each other would be gigabytes
    return [absurd(draw, depth + 1)] * draw.choice((0, 1, 2, 300 if depth > 1 else 3))


def body(draw: random.Random, path: str) -> bytes:
    """A body: good but for some fields, sometimes damaged."""
    given = dict(GOOD.get(path, {}))
    for _ in range(draw.randrange(4)):
        given[draw.choice(NAMES)] = absurd(draw)
    if draw.random() < 0.9 and ("prompt" in given or "messages" in given):
        given["max_tokens"] = draw.choice((0, 1, 2))  # valid requests generate few tokens
    data = json.dumps(given if draw.random() < 0.95 else absurd(draw)).encode()
    if draw.random() < 0.02:
        data = b"[" * 20_000
    return damaged(draw, data) if draw.random() < 0.3 else data


def http_request(draw: random.Random) -> bytes:
    """The bytes of one request; what is cut off of it never comes."""
    path = draw.choices(PATHS, (40, 20, 12, 12, 4, 4, 4, 4))[0]
    data = body(draw, path)
    lines = [f"{draw.choices(('POST', 'GET', 'PUT', 'HEAD'), (92, 4, 2, 2))[0]} {path} HTTP/1.1", "Host: x"]
    lines += [f"{draw.choice(HEADERS)}: {draw.choice(VALUES)}" for _ in range(draw.choice((0, 0, 0, 1, 2)))]
    match draw.randrange(12):
        case 0:
            lines.append("Transfer-Encoding: chunked")
            data = b"%x\r\n%b\r\n0\r\n\r\n" % (len(data), data)
            data = damaged(draw, data) if draw.random() < 0.5 else data
        case 1:
            lines.append(f"Content-Length: {draw.choice(('-1', 'two', '1', str(len(data) + 1), str(2**64)))}")
        case _:
            lines.append(f"Content-Length: {len(data)}")
    sent = "\r\n".join([*lines, "", ""]).encode("latin-1") + data
    return damaged(draw, sent) if draw.random() < 0.05 else sent


def attack_http(url: str, requests: int, seed: int) -> Counter[str]:
    """Send `requests` requests, each over a connection of its own; returns the count of each outcome.

    An outcome is a status; "not JSON" where the answer is none; "silent" where the server waits for more, or closed.
    """
    return asyncio.run(_attack(url, requests, seed))


async def _attack(url: str, requests: int, seed: int) -> Counter[str]:
    draw, where, outcomes, left = random.Random(seed), urlsplit(url), Counter[str](), requests

    async def caller() -> None:
        nonlocal left
        while left > 0:
            left -= 1
            sent = http_request(draw)
            outcomes[await _outcome(where.hostname or "", where.port or 80, sent)] += 1

    await asyncio.gather(*(caller() for _ in range(AT_ONCE)))
    return outcomes


async def _outcome(host: str, port: int, sent: bytes) -> str:
    """What comes of one request."""
    reader, writer = await asyncio.open_connection(host, port)
    try:
        async with asyncio.timeout(SILENT_SECONDS):
            writer.write(sent)
            await writer.drain()
            head = await reader.readuntil(b"\r\n\r\n")
            while head.startswith(b"HTTP/1.1 100"):
                head = await reader.readuntil(b"\r\n\r\n")
            status, low = head.split()[1].decode(), head.lower()
            length = low.partition(b"content-length: ")[2].split(b"\r\n")[0]
            data = await reader.readexactly(int(length)) if length and b"HEAD " not in sent[:16] else b""
    except (TimeoutError, asyncio.IncompleteReadError, ConnectionError):
        return "silent"
    finally:
        writer.close()
    if b"text/event-stream" in low:
        return status
    if b"content-type: application/json" not in low:
        return "not JSON"
    if data:
        json.loads(data)
    return status
