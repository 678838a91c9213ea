import random

import pytest

from medha_jax.bench.sse import LONGEST_EVENT, EventStream, StreamError


def test_events_come_with_the_bytes_that_end_them():
    stream = EventStream()
    assert stream.feed(b"data: a\n") == []
    assert stream.feed(b"\ndata: b\n\ndata: c") == [b"a", b"b"]
    assert stream.feed(b"d\n\n") == [b"cd"]


def test_lines_end_in_any_way_and_other_fields_are_left_out():
    said = b": comment\r\nevent: x\r\ndata: a\r\nid: 1\r\n\r\ndata:b\r\rdata\ndata: c\ndata:  d\n\n\n\nretry: 5\n\n"
    assert EventStream().feed(said) == [b"a", b"b", b"c\n d"]


def test_it_does_not_matter_how_the_bytes_are_cut():
    said = b'data: one\r\n\r\n: ping\n\ndata: two\ndata: lines\n\ndata: {"a": 1}\r\n\r\ndata: [DONE]\n\n'
    whole = EventStream().feed(said)
    draw = random.Random(0)
    for _ in range(200):
        stream, found, rest = EventStream(), [], said
        while rest:
            size = draw.randrange(1, 12)
            found += stream.feed(rest[:size])
            rest = rest[size:]
        assert found == whole == [b"one", b"two\nlines", b'{"a": 1}', b"[DONE]"]


def test_an_event_without_end_is_refused():
    stream = EventStream()
    for _ in range(LONGEST_EVENT // 2**16):
        stream.feed(b"a" * 2**16)
    with pytest.raises(StreamError, match="1,048,576 bytes"):
        stream.feed(b"a")
