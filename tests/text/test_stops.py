import itertools

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from medha_jax.text import StopStrings

texts = st.text("abc", max_size=40)
stop_lists = st.lists(st.text("abc", min_size=1, max_size=5), max_size=4)


def expected(text, stops, include):
    """The definition: cut at the stop string that starts first, of two that start together at the shorter."""
    found = [(text.find(stop), len(stop), stop) for stop in stops if stop in text]
    if not found:
        return text, None
    start, length, stop = min(found)
    return text[: start + length * include], stop


def stream(pieces, stops, include=False):
    """Every piece pushed, then the end; returns the texts that came out and the match."""
    scanner = StopStrings(stops, include)
    out, matched = [], None
    for piece in pieces:
        safe, matched = scanner.push(piece)
        out.append(safe)
        if matched is not None:
            break
    if matched is None:
        safe, matched = scanner.finish()
        out.append(safe)
    return out, matched


@given(texts, stop_lists, st.booleans(), st.lists(st.integers(0, 40)))
@example("abcd", ["abcd", "bc"], False, [1, 2, 3])
def test_any_split_gives_the_text_up_to_the_earliest_match(text, stops, include, cuts):
    borders = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    pieces = [text[a:b] for a, b in itertools.pairwise(borders)]
    out, matched = stream(pieces, stops, include)
    assert ("".join(out), matched) == expected(text, stops, include)


@given(texts, stop_lists)
def test_only_what_may_become_a_stop_string_is_withheld(text, stops):
    scanner = StopStrings(stops)
    shown = ""
    for position, character in enumerate(text, start=1):
        safe, matched = scanner.push(character)
        shown += safe
        if matched is not None:
            return
        withheld = text[len(shown) : position]
        if withheld and not any(stop in text[:position] for stop in stops):
            assert any(stop.startswith(withheld) for stop in stops)


def test_a_stop_string_across_pieces():
    assert stream(["one ST", "O", "P two"], ["STOP"]) == (["one ", "", ""], "STOP")
    assert stream(["one ST", "O", "P two"], ["STOP"], include=True) == (["one ", "", "STOP"], "STOP")


def test_a_false_start_is_given_back():
    assert stream(["a ST", "ARK"], ["STOP"]) == (["a ", "STARK", ""], None)
    assert stream(["aaa", "ab"], ["aab"]) == (["a", "a"], "aab")


def test_the_end_gives_back_what_was_withheld():
    assert stream(["ends in ST"], ["STOP"]) == (["ends in ", "ST"], None)


def test_the_one_that_starts_first_wins():
    assert stream(["x", "abc", "d"], ["abcd", "bc"]) == (["x", "", ""], "abcd")
    assert stream(["x", "abc", "!"], ["abcd", "bc"]) == (["x", "", "a"], "bc")
    assert stream(["x", "abc"], ["abcd", "bc"]) == (["x", "", "a"], "bc")


def test_the_shorter_of_two_that_start_together_wins():
    assert stream(["xab", "c"], ["abc", "ab"], include=True) == (["xab"], "ab")


def test_nothing_passes_after_a_match():
    scanner = StopStrings(["b"])
    assert scanner.push("abc") == ("a", "b")
    assert scanner.push("more") == ("", "b")
    assert scanner.finish() == ("", "b")


def test_without_stop_strings_text_passes_at_once():
    assert StopStrings([]).push("text") == ("text", None)


def test_an_empty_stop_string_is_refused():
    with pytest.raises(ValueError, match="at least one character"):
        StopStrings(["a", ""])


def test_time_is_linear_for_a_stop_string_that_almost_matches():
    scanner = StopStrings(["a" * 255 + "b"])
    out = [scanner.push("a")[0] for _ in range(20_000)]
    assert len("".join(out)) == 20_000 - 255
