"""The paths of the OpenAI API on a real server, with OpenAI's own package."""

import json
import shutil
import subprocess

import openai
import pytest

import medha_jax
from medha_jax.client import Delta, PromptLogprobs
from tests.server.conftest import CONTEXT
from tests.server.http.raw import exchanged, post
from tests.server.processes import idle, wait_until

MODEL = "small"
PROMPT = "the quick brown fox"
STATED = dict(model=MODEL, prompt=PROMPT, max_tokens=8, temperature=0, extra_body={"ignore_eos": True})


def of_grpc(client, prompt=PROMPT, **settings):
    """Text, ids, log-probabilities and end of an output over gRPC."""
    settings = dict(max_tokens=8, ignore_eos=True, temperature=0) | settings
    events = list(client.generate(prompt, **settings))
    deltas = [event for event in events if isinstance(event, Delta)]
    text = "".join(delta.text for delta in deltas)
    return text, [one for delta in deltas for one in delta.token_ids], deltas, events


def create(asked, **changes):
    extra = STATED["extra_body"] | changes.pop("extra_body", {})
    return asked.completions.create(**STATED | changes | {"extra_body": extra})


def test_a_whole_answer_has_the_text_of_grpc(asked, client):
    text, ids, _, _ = of_grpc(client)
    raw = asked.completions.with_raw_response.create(
        **STATED | {"extra_body": {"ignore_eos": True, "return_token_ids": True, "request_id": "mine"}}, user="me"
    )
    answer = raw.parse()
    assert raw.headers["x-request-id"] == "mine" and answer.id == "cmpl-mine"
    assert raw.headers["x-ignored-fields"] == "user"
    assert answer.model == MODEL and answer.object == "text_completion" and answer.created > 1.7e9
    (choice,) = answer.choices
    assert (choice.text, choice.finish_reason, choice.index, choice.logprobs) == (text, "length", 0, None)
    assert choice.token_ids == ids
    tokens = len(client.tokenize(PROMPT))
    usage = answer.usage
    assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (tokens, 8, tokens + 8)


def test_a_stream_has_the_same_text(asked, client):
    text, ids, _, _ = of_grpc(client)
    options = {"include_usage": True, "continuous_usage_stats": True}
    stated = STATED | {"extra_body": {"ignore_eos": True, "return_token_ids": True}, "stream_options": options}
    chunks = list(asked.completions.create(**stated, stream=True))
    assert len({chunk.id for chunk in chunks}) == 1 and chunks[0].id.startswith("cmpl-")
    *told, last = chunks
    assert "".join(chunk.choices[0].text for chunk in told) == text
    assert [one for chunk in told for one in chunk.choices[0].token_ids] == ids
    assert [chunk.choices[0].finish_reason for chunk in told] == [None] * (len(told) - 1) + ["length"]
    counts = [chunk.usage.completion_tokens for chunk in told]
    assert counts == sorted(counts) and counts[-1] == 8, "each chunk has the usage so far"
    assert last.choices == [] and last.usage.completion_tokens == 8
    plain = list(create(asked, stream=True))
    assert all(chunk.usage is None for chunk in plain) and all(chunk.choices for chunk in plain)


def test_ids_and_lists_of_prompts(asked, client):
    ids = list(client.tokenize(PROMPT))
    text, other = of_grpc(client)[0], of_grpc(client, "def fibonacci")[0]
    assert create(asked, prompt=ids).choices[0].text == text
    prompts = [PROMPT, "def fibonacci", PROMPT]
    answer = create(asked, prompt=prompts, n=2)
    assert [choice.text for choice in answer.choices] == [text, text, other, other, text, text]
    assert [choice.index for choice in answer.choices] == list(range(6))
    tokens = sum(len(client.tokenize(prompt)) for prompt in prompts)
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (tokens, 6 * 8)
    joined = dict.fromkeys(range(6), "")
    for chunk in create(asked, prompt=prompts, n=2, stream=True):
        for choice in chunk.choices:
            joined[choice.index] += choice.text
    assert list(joined.values()) == [choice.text for choice in answer.choices]


def test_settings_mean_what_they_mean_over_grpc(asked, client):
    """Each is drawn with a seed, so that an ignored one shows."""
    drawn = dict(temperature=1.5, seed=7, max_tokens=12)
    plain = of_grpc(client, **drawn)[0]
    assert create(asked, **drawn).choices[0].text == plain
    for name, value in (
        ("top_k", 2),
        ("min_p", 0.9),
        ("repetition_penalty", 0.05),
        ("min_tokens", 12),
        ("allowed_token_ids", [50, 60, 70]),
        ("skip_special_tokens", False),
    ):
        answer = create(asked, **drawn, extra_body={name: value})
        assert answer.choices[0].text == of_grpc(client, **drawn, **{name: value})[0], name
        assert name in ("min_tokens", "skip_special_tokens") or answer.choices[0].text != plain, name
    for name, value in (("top_p", 0.2), ("presence_penalty", 2.0), ("frequency_penalty", 2.0)):
        answer = create(asked, **drawn, **{name: value})
        assert answer.choices[0].text == of_grpc(client, **drawn, **{name: value})[0], name
    banned = of_grpc(client, **drawn, logit_bias={90: 100.0})[0]
    assert create(asked, **drawn, logit_bias={"90": 100}).choices[0].text == banned != plain
    assert create(asked, **drawn, n=2).choices[0].text == plain


def test_stops(asked, client):
    text, ids, _, _ = of_grpc(client, max_tokens=30)
    stop = text[6:8]
    for stated in (stop, ["never there", stop]):
        for streamed in (False, True):
            answer = create(asked, max_tokens=30, stop=stated, stream=streamed)
            choices = [chunk.choices[0] for chunk in answer] if streamed else answer.choices
            assert "".join(choice.text for choice in choices) == text[: text.index(stop)]
            assert choices[-1].finish_reason == "stop" and choices[-1].stop_reason == stop
    kept = create(asked, max_tokens=30, stop=stop, extra_body={"include_stop_str_in_output": True})
    assert kept.choices[0].text == text[: text.index(stop) + len(stop)]
    (choice,) = create(asked, extra_body={"stop_token_ids": [ids[2]]}).choices
    assert choice.finish_reason == "stop" and choice.stop_reason == ids[2]
    ended = create(asked, logit_bias={"1": 100}, extra_body={"ignore_eos": False})
    assert ended.choices[0].finish_reason == "stop" and ended.usage.completion_tokens == 1


def test_echo(asked, client):
    text = of_grpc(client)[0]
    for streamed in (False, True):
        answer = create(asked, echo=True, stream=streamed)
        choices = [chunk.choices[0] for chunk in answer] if streamed else answer.choices
        assert "".join(choice.text for choice in choices) == PROMPT + text


@pytest.mark.parametrize("streamed", [False, True])
def test_log_probabilities_are_those_of_grpc(asked, client, streamed):
    _, ids, deltas, _ = of_grpc(client, logprobs=3)
    wanted = [one for delta in deltas for one in delta.logprobs]
    answer = create(asked, logprobs=3, stream=streamed)
    parts = [chunk.choices[0] for chunk in answer] if streamed else answer.choices
    found = [choice.logprobs for choice in parts if choice.logprobs is not None]
    values = [value for one in found for value in one.token_logprobs]
    assert values == pytest.approx([one.logprob for one in wanted], abs=1e-4)
    likeliest = [top for one in found for top in one.top_logprobs]
    for top, one in zip(likeliest, wanted, strict=True):
        assert 1 <= len(top) <= 4 and max(top.values()) == pytest.approx(one.top[0][1], abs=1e-4)
    tokens = [token for one in found for token in one.tokens]
    offsets = [offset for one in found for offset in one.text_offset]
    assert offsets == [len("".join(tokens[:place])) for place in range(len(ids))]


@pytest.mark.parametrize("streamed", [False, True])
def test_an_echo_has_the_log_probabilities_of_the_prompt(asked, client, streamed):
    ids = client.tokenize(PROMPT)
    _, _, deltas, events = of_grpc(client, ids, logprobs=2, prompt_logprobs=2)
    wanted = [one for event in events if isinstance(event, PromptLogprobs) for one in event.tokens]
    wanted += [one for delta in deltas for one in delta.logprobs]
    answer = create(asked, echo=True, logprobs=2, n=2, stream=streamed)
    choices = [choice for chunk in answer for choice in chunk.choices] if streamed else answer.choices
    for index in (0, 1):
        found = [one.logprobs for one in choices if one.index == index and one.logprobs is not None]
        values = [value for one in found for value in one.token_logprobs]
        assert values[0] is None and len(values) == len(ids) + 8
        assert values[1:] == pytest.approx([one.logprob for one in wanted], abs=1e-4)
        assert found[0].top_logprobs[0] is None


def test_what_is_cached_is_told_and_a_salt_keeps_it_apart(asked):
    prompt = "once more and more " * 12
    cached = [
        create(asked, prompt=prompt, extra_body=salt).usage.prompt_tokens_details.cached_tokens
        for salt in ({}, {}, {"cache_salt": "own"}, {"cache_salt": "own"})
    ]
    assert cached[0] == cached[2] == 0 and cached[1] == cached[3] > 0


def test_models_and_the_small_paths(asked, server, client):
    (card,) = asked.models.list().data
    assert card.id == MODEL == asked.models.retrieve(MODEL).id and card.max_model_len == CONTEXT
    with pytest.raises(openai.NotFoundError, match="the model 'a/b' is not served; small is"):
        asked.models.retrieve("a/b")

    def told(path, body=None):
        return exchanged(server.url, post(b"" if body is None else body, path, method="POST" if body else "GET")).json

    for special in (True, False):
        stated = {"prompt": PROMPT, "add_special_tokens": special, "return_token_strs": True}
        answer = told("/tokenize", stated)
        assert answer["tokens"] == list(client.tokenize(PROMPT, add_special_tokens=special))
        assert answer["count"] == len(answer["tokens"]) and answer["max_model_len"] == CONTEXT
    assert "".join(answer["token_strs"]).replace("Ġ", " ") == PROMPT
    assert told("/tokenize", {"prompt": PROMPT})["token_strs"] is None
    assert told("/detokenize", {"tokens": answer["tokens"]}) == {"prompt": PROMPT}
    assert told("/health") == {"status": "ready"}
    assert told("/version")["version"] == medha_jax.__version__
    wait_until(lambda: idle(client))
    load = told("/load")
    assert load["running"] == load["waiting"] == load["server_load"] == 0 and load["accepting"] is True
    assert load["pools"][0]["free_pages"] == load["pools"][0]["total_pages"]


def test_errors_are_the_packages_own(asked):
    with pytest.raises(openai.BadRequestError) as raised:
        create(asked, temperature=1000)
    assert raised.value.status_code == 400 and "temperature is 1000" in raised.value.message
    with pytest.raises(openai.BadRequestError) as raised:
        create(asked, prompt=[5] * CONTEXT)
    assert raised.value.code == "context_length_exceeded"
    with pytest.raises(openai.NotFoundError) as raised:
        create(asked, model="other")
    assert raised.value.code == "model_not_found" and raised.value.param == "model"
    with pytest.raises(openai.BadRequestError, match="unknown fields: nonsense"):
        create(asked, extra_body={"nonsense": 1})
    for streamed in (False, True):
        with pytest.raises(openai.BadRequestError, match="n is 2147483647; allowed are 1 to 8 outputs"):
            create(asked, stream=streamed, n=2**31 - 1)
    with pytest.raises(openai.APIStatusError) as raised:
        create(asked, max_tokens=100, extra_headers={"x-request-timeout-ms": "0.001"})
    assert raised.value.status_code == 504


def test_an_id_that_runs_is_a_conflict_and_not_tried_again(asked, server):
    """The package repeats conflicts twice unless it is told not to."""
    stated = dict(max_tokens=400, extra_body={"request_id": "one"})
    with create(asked, **stated, stream=True) as running:
        next(iter(running))
        with pytest.raises(openai.ConflictError) as raised:
            create(asked.with_options(max_retries=2), **stated)
        assert raised.value.code == "request_id_taken"
        answer = exchanged(server.url, post({"prompt": "a", "request_id": "one"}))
        assert answer.headers["x-should-retry"] == "false" and "retry-after" not in answer.headers
    assert server.errors.count("a request with the id one is running") == 2


def test_unknown_paths_and_methods(server):
    for request, status, said in (
        (post({}, "/v1/nothing"), 404, "there is no path /v1/nothing"),
        (post({}, "/v1/models"), 405, "/v1/models does not take POST"),
        (post(b"", method="GET"), 405, "/v1/completions does not take GET"),
        (post(b"", "/", method="PUT"), 404, "there is no path /"),
    ):
        answer = exchanged(server.url, request)
        assert answer.status == status and said in answer.error["message"]
    assert json.loads(exchanged(server.url, post(b"", "/health", method="GET")).body) == {"status": "ready"}


@pytest.mark.skipif(shutil.which("curl") is None, reason="the command curl is not installed")
def test_curl_reads_an_answer_a_stream_and_an_error(server, client):
    def curled(sent):
        done = subprocess.run(
            ["curl", "-sN", f"{server.url}/v1/completions", "-d", json.dumps(sent), "-w", "\n%{http_code}"],
            capture_output=True,
            timeout=60,
            check=True,
        )
        text, _, status = done.stdout.decode().rpartition("\n")
        return int(status), text

    body = {"prompt": "curl", "max_tokens": 6, "temperature": 0, "ignore_eos": True}
    wanted = of_grpc(client, "curl", max_tokens=6, temperature=0)[0]
    status, text = curled(body)
    assert status == 200 and json.loads(text)["choices"][0]["text"] == wanted
    status, text = curled(body | {"stream": True})
    events = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: ")]
    assert status == 200 and events[-1] == "[DONE]"
    assert "".join(json.loads(event)["choices"][0]["text"] for event in events[:-1]) == wanted
    status, text = curled(body | {"top_p": 7})
    assert status == 400 and "top_p is 7" in json.loads(text)["error"]["message"]
