from hypothesis import given
from hypothesis import strategies as st

from medha_jax.protos import inference_pb2 as pb
from medha_jax.server.http.choices import CompletionForm, News, how_it_ended
from medha_jax.server.http.token_texts import Scored

WORDS = st.lists(st.integers(0, 99), max_size=4)


def news(ids, top=()):
    return News("".join(map(str, ids)), ids, [Scored(one, -0.5, top) for one in ids])


@given(st.lists(st.tuples(st.integers(0, 2), WORDS), max_size=8))
def test_chunks_join_to_the_whole(parts):
    streaming, texts, logprobs = CompletionForm(1, str), {}, {}
    for index, ids in parts:
        choice = streaming.chunk(index, news(ids))
        assert choice["index"] == index and choice["finish_reason"] is None and choice["stop_reason"] is None
        texts[index] = texts.get(index, "") + choice["text"]
        for name, values in (choice["logprobs"] or {}).items():
            logprobs.setdefault(index, {}).setdefault(name, []).extend(values)
    for index, text in texts.items():
        ids = [one for place, some in parts if place == index for one in some]
        whole = CompletionForm(1, str).whole(index, news(ids))
        assert whole["text"] == text and whole["logprobs"] == logprobs.get(index)


def test_without_log_probabilities_there_are_none():
    assert CompletionForm(None, str).whole(0, news([1]))["logprobs"] is None
    assert CompletionForm(0, str).whole(0, News("text"))["logprobs"] is None, "no token, as in a piece of an echo"
    assert CompletionForm(0, str).whole(0, news([1], [(2, -0.1)]))["logprobs"]["top_logprobs"] == [{"1": -0.5}]


def test_the_end_of_an_output_and_what_matched():
    assert how_it_ended(None) == {"finish_reason": None, "stop_reason": None}
    for message, reason, matched in (
        (pb.GenerationFinished(reason=pb.FINISH_REASON_LENGTH), "length", None),
        (pb.GenerationFinished(reason=pb.FINISH_REASON_STOP), "stop", None),
        (pb.GenerationFinished(reason=pb.FINISH_REASON_STOP, stop="end"), "stop", "end"),
        (pb.GenerationFinished(reason=pb.FINISH_REASON_STOP, stop_token_id=0), "stop", 0),
    ):
        assert how_it_ended(message) == {"finish_reason": reason, "stop_reason": matched}
        assert CompletionForm(None, str).whole(1, News(finished=message))["finish_reason"] == reason
