import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medha_jax.engine.events import Course, GenerationRequest, NewTokens, PhaseTimings, TokenLogprobs
from medha_jax.engine.output import RequestOutput, check_stops
from medha_jax.plan import InvalidRequestError, SamplingParams
from medha_jax.text import Tokenizer
from tests.text.tiny_tokenizers import byte_level, sentencepiece

TOKENIZER = Tokenizer(byte_level())
EOS = 1


def ids(text):
    """One token a byte, so that tests know which token carries which character."""
    table = [TOKENIZER.decode([token]) for token in range(2, 258)]
    return [table.index(character) + 2 for character in text]


def run(token_ids, *, eos_ids=(EOS,), limit=None, prompt=(5,), tokenizer=TOKENIZER, **sampling):
    """Push ids until the end; returns the output and its deltas."""
    request = GenerationRequest(tuple(prompt), SamplingParams(**sampling), eos_ids)
    output = RequestOutput(request, tokenizer, limit=limit)
    deltas = []
    for token_id in token_ids:
        delta = output.push(token_id)
        if delta is None:
            break
        deltas.append(delta)
    return output, deltas


def ended(output):
    completion = output.completion(Course(PhaseTimings(0, 0.1, 0.1, 0, 0.1, None), (1,)))
    return completion.text, completion.finish_reason, completion.matched, len(completion.token_ids)


def test_eos_ends_and_shows_nothing():
    output, deltas = run([*ids("ab"), EOS, *ids("c")])
    assert ended(output) == ("ab", "stop", EOS, 3)
    assert deltas[-1] == NewTokens((EOS,), "")


def test_eos_is_passed_over_on_request():
    output, _ = run([*ids("a"), EOS, *ids("b")], ignore_eos=True, max_tokens=3)
    assert ended(output) == ("ab", "length", None, 3)


def test_a_stop_token_ends_even_if_eos_is_ignored():
    (stop,) = ids("x")
    output, _ = run(ids("abxc"), ignore_eos=True, stop_token_ids=(stop,))
    assert ended(output) == ("ab", "stop", stop, 3)


@pytest.mark.parametrize("eos_ids", [(), (EOS,)])
def test_a_stop_string_that_is_a_special_token_ends(eos_ids):
    output, _ = run([*ids("ab"), EOS, *ids("c")], eos_ids=eos_ids, stop=("x", "</s>"))
    assert ended(output) == ("ab", "stop", "</s>", 3)
    output, _ = run([*ids("ab"), EOS, *ids("c")], eos_ids=eos_ids, stop=("</s>",), include_stop=True, ignore_eos=True)
    assert ended(output) == ("ab</s>", "stop", "</s>", 3)


def test_a_special_stop_string_waits_for_min_tokens_and_for_an_earlier_one():
    output, _ = run([*ids("a"), EOS, *ids("b"), EOS], eos_ids=(), stop=("</s>",), min_tokens=2)
    assert ended(output) == ("ab", "stop", "</s>", 4)
    output, _ = run([*ids("abc"), EOS], eos_ids=(), stop=("bcd", "</s>"))
    assert ended(output) == ("abc", "stop", "</s>", 4)
    output, _ = run([*ids("abc"), EOS], eos_ids=(), stop=("bc", "</s>"))
    assert ended(output) == ("a", "stop", "bc", 3)


def test_special_tokens_are_shown_on_request():
    tokens = [*ids("a"), EOS, *ids("bc")]
    output, _ = run(tokens, eos_ids=(), max_tokens=4, skip_special_tokens=False)
    assert ended(output) == ("a</s>bc", "length", None, 4)
    output, _ = run(tokens, eos_ids=(), skip_special_tokens=False, stop=("</s>b",))
    assert ended(output) == ("a", "stop", "</s>b", 3)


def test_stop_strings_that_are_never_found_are_refused():
    with pytest.raises(
        InvalidRequestError, match=r"'</s>\\n' is never found, because '</s>' is a special token; stop at"
    ):
        check_stops(SamplingParams(stop=("x", "</s>\n")), TOKENIZER)
    check_stops(SamplingParams(stop=("</s>\n",), skip_special_tokens=False), TOKENIZER)
    check_stops(SamplingParams(stop=("</s>", "</s", "s>")), TOKENIZER)


def test_a_stop_token_is_shown_on_request():
    (stop,) = ids("x")
    output, _ = run(ids("abxc"), stop_token_ids=(stop,), include_stop=True)
    assert ended(output) == ("abx", "stop", stop, 3)
    output, _ = run([*ids("a"), EOS], include_stop=True)
    assert ended(output) == ("a", "stop", EOS, 2)  # a special token has no text


def test_stop_tokens_count_only_after_min_tokens():
    output, _ = run([EOS, *ids("a"), EOS, *ids("b")], min_tokens=2)
    assert ended(output) == ("a", "stop", EOS, 3)


def test_a_stop_string_across_tokens_is_cut_off():
    output, deltas = run(ids("one STOP two"), stop=("STOP",))
    assert ended(output) == ("one ", "stop", "STOP", 8)
    assert [delta.text for delta in deltas] == ["o", "n", "e", " ", "", "", "", ""]


def test_a_stop_string_is_shown_on_request():
    output, _ = run(ids("one STOP two"), stop=("STOP",), include_stop=True)
    assert ended(output) == ("one STOP", "stop", "STOP", 8)


def test_stop_strings_are_not_sought_in_the_first_min_tokens():
    output, _ = run(ids("xxaxb"), stop=("x",), min_tokens=2)
    assert ended(output) == ("xxa", "stop", "x", 4)
    output, _ = run(ids("abab"), stop=("ab",), min_tokens=1)
    assert ended(output) == ("ab", "stop", "ab", 4)


@pytest.mark.parametrize("given, limit", [(dict(max_tokens=3), None), (dict(max_tokens=9), 3), ({}, 3)])
def test_the_smaller_limit_ends_with_all_text(given, limit):
    output, deltas = run(ids("abSTOP"), limit=limit, stop=("STOP",), **given)
    assert ended(output) == ("abS", "length", None, 3)
    assert deltas[-1].text == "S"


def test_a_stop_string_that_waited_for_an_earlier_one_counts_at_the_limit():
    output, _ = run(ids("xabc"), stop=("abcd", "bc"), max_tokens=4)
    assert ended(output) == ("xa", "stop", "bc", 4)


def test_a_stop_string_before_eos_wins_over_it():
    output, _ = run([*ids("xabc"), EOS], stop=("abcd", "bc"))
    assert ended(output) == ("xa", "stop", "bc", 5)


def test_a_stop_on_the_last_token_is_a_stop():
    assert ended(run([*ids("a"), EOS], max_tokens=2)[0]) == ("a", "stop", EOS, 2)
    assert ended(run(ids("ab"), stop=("b",), max_tokens=2)[0]) == ("a", "stop", "b", 2)


def test_an_unfinished_character_is_shown_at_the_end():
    euro = TOKENIZER.encode("€")[1:2]  # the first of its three bytes
    _, deltas = run([*ids("a"), *euro], max_tokens=2)
    assert [delta.text for delta in deltas] == ["a", "\ufffd"]


def test_tokens_after_the_end_are_dropped():
    output, _ = run([EOS])
    assert output.finished
    assert output.push(7) is None
    assert output.token_ids == (EOS,)


def test_the_text_continues_the_prompt():
    tokenizer = Tokenizer(sentencepiece())
    word = tokenizer.encode("fox")
    prompt = tokenizer.encode("the quick")
    output, _ = run(word, prompt=prompt, tokenizer=tokenizer, max_tokens=len(word))
    assert ended(output)[0] == " fox"


def test_a_completion_before_the_end_is_an_error():
    output, _ = run(ids("ab"))
    assert (output.finished, output.finish_reason, output.matched) == (False, None, None)
    with pytest.raises(RuntimeError, match="not over after 2 tokens"):
        ended(output)


@pytest.mark.parametrize("keep", [True, False])
def test_timings_are_kept_and_logprobs_where_someone_reads_them(keep):
    request = GenerationRequest((5, 6, 7), SamplingParams(max_tokens=2, logprobs=1))
    output = RequestOutput(request, TOKENIZER, keep_logprobs=keep)
    logprobs = [TokenLogprobs(token, -0.5, ((token, -0.5),)) for token in ids("ab")]
    deltas = [output.push(entry.token_id, entry) for entry in logprobs]
    assert [delta.logprobs for delta in deltas] == [(logprobs[0],), (logprobs[1],)]
    completion = output.completion(Course(PhaseTimings(0.05, 0.2, 0.25, 0.125, 0.375, 0.125), (2, 1)))
    assert completion.logprobs == (tuple(logprobs) if keep else ())
    assert (completion.prompt_tokens, completion.ttft_s, completion.tpot_s) == (3, 0.25, 0.125)
    assert completion.chunks == (2, 1)


@given(
    st.lists(st.one_of(st.integers(0, 330), st.sampled_from(ids("abSTOP"))), max_size=50),
    st.lists(st.sampled_from(["STOP", "ab", "a", "\ufffd"]), max_size=3, unique=True),
    st.integers(0, 8),
    st.integers(8, 40),
    st.booleans(),
    st.booleans(),
)
def test_deltas_add_up(token_ids, stop, min_tokens, max_tokens, include_stop, ignore_eos):
    output, deltas = run(
        itertools.chain(token_ids, itertools.repeat(10)),
        stop=tuple(stop),
        min_tokens=min_tokens,
        max_tokens=max_tokens,
        include_stop=include_stop,
        ignore_eos=ignore_eos,
    )
    text, reason, matched, count = ended(output)
    assert "".join(delta.text for delta in deltas) == text
    assert tuple(token for delta in deltas for token in delta.token_ids) == output.token_ids
    assert min_tokens <= count <= max_tokens
    assert (reason == "length") == (matched is None)
    if reason == "length":
        assert count == max_tokens
        assert text == TOKENIZER.decode(list(output.token_ids))
    elif isinstance(matched, str):
        assert text.endswith(matched) or not include_stop
    else:
        assert matched == EOS and not ignore_eos
