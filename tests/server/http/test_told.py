from medha_jax.protos import inference_pb2 as pb
from medha_jax.server.http.completion_request import Asked
from medha_jax.server.http.settings_fields import Streaming
from medha_jax.server.http.token_texts import Scored
from medha_jax.server.http.told import AnswerUsage, Joined


def test_usage_adds_up_over_prompts():
    usage = AnswerUsage()
    assert usage.accepted(0, pb.GenerationAccepted(prompt_tokens=5)) == 1
    assert usage.accepted(2, pb.GenerationAccepted(prompt_tokens=7)) == 2
    usage.took(3)
    usage.ended(pb.GenerationFinished(total=pb.TokenUsage(cached_tokens=4)))
    usage.ended(pb.GenerationFinished())  # an output that is not the last of its request
    assert usage.body() == {
        "prompt_tokens": 12,
        "completion_tokens": 3,
        "total_tokens": 15,
        "prompt_tokens_details": {"cached_tokens": 4},
    }


def test_each_choice_begins_with_the_tokens_of_its_prompt():
    joined = Joined(Asked("id", [], 2, Streaming(), 2, 1, echoed=(7, 9)))
    joined.scored(0, pb.PromptLogprobs(start=1, token_ids=[8], logprobs=[-1]))
    logprobs = [pb.TokenLogprob(token_id=5, logprob=-2)]
    first = joined.news(0, pb.GenerationDelta(text="x", token_ids=[5], logprobs=logprobs, index=1))
    assert first.scored == [Scored(7, None), Scored(8, -1), Scored(5, -2, [])] and first.ids == [5]
    assert joined.news(0, pb.GenerationDelta(token_ids=[5], index=1)).scored == [], "once"
    assert [one.token_id for one in joined.news(0, pb.GenerationDelta(text="x")).scored] == [7, 8]
    assert joined.news(1, pb.GenerationDelta(text="x")).scored == [Scored(9, None)]
    assert [joined.choice(prompt, index) for prompt in (0, 1) for index in (0, 1)] == [0, 1, 2, 3]
