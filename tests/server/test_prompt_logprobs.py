"""Log-probabilities of a prompt's own tokens over a real connection."""

import json

import pytest

from medha_jax import cli
from medha_jax.client import Accepted, Client, Delta, Finished, InvalidSettingError, PromptLogprobs, ServerError
from tests.server.processes import refusal

PROMPT = [7 + n % 50 for n in range(70)]
STATED = dict(max_tokens=6, ignore_eos=True, temperature=0)


def entries(events):
    """The entries of a prompt, which come in order and before its first token."""
    kinds = [type(event) for event in events]
    parts = [event for event in events if isinstance(event, PromptLogprobs)]
    assert kinds[0] is Accepted and kinds[1 : 1 + len(parts)] == [PromptLogprobs] * len(parts) and parts
    for before, part in enumerate(parts):
        assert part.start == 1 + sum(len(one.tokens) for one in parts[:before])
    return [entry for part in parts for entry in part.tokens]


def equal(got, wanted):
    assert len(got) == len(wanted)
    for one, other in zip(got, wanted, strict=True):
        assert one.token_id == other.token_id and [t for t, _ in one.top] == [t for t, _ in other.top]
        values = [other.logprob, *(value for _, value in other.top)]
        assert [one.logprob, *(value for _, value in one.top)] == pytest.approx(values, abs=1e-4)


@pytest.fixture(scope="module")
def answered(server):
    """A prompt with its answer, as one prompt, and the entries of the answer."""
    with Client(server.address) as client:
        deltas = [one for one in client.generate(PROMPT, logprobs=3, **STATED) if isinstance(one, Delta)]
    generated = [entry for delta in deltas for entry in delta.logprobs]
    return PROMPT + [entry.token_id for entry in generated], generated


def test_a_prompt_has_what_its_tokens_had_when_they_were_generated(client, answered):
    prompt, generated = answered
    events = list(client.generate(prompt, prompt_logprobs=3, n=2, echo=True, **STATED))
    got = entries(events)
    assert [entry.token_id for entry in got] == prompt[1:] and {len(entry.top) for entry in got} == {3}
    equal(got[-len(generated) :], generated)
    again = list(client.generate(prompt, prompt_logprobs=0, **STATED))
    assert [entry.logprob for entry in entries(again)] == pytest.approx([entry.logprob for entry in got], abs=1e-4)
    assert not any(entry.top for entry in entries(again))
    *_, last = again
    assert isinstance(last, Finished) and last.usage.cached_tokens == 0, "the whole prompt is computed"
    *_, last = client.generate(prompt, **STATED)
    assert last.usage.cached_tokens, "and found by others"


def test_a_prompt_in_parts_and_the_command_tell_the_same(server, client, answered, monkeypatch, capsys):
    prompt, _ = answered
    whole = entries(list(client.generate(prompt, prompt_logprobs=2, **STATED)))
    ids = ",".join(map(str, prompt))
    flags = ["--max-tokens", "2", "--json", "--prompt-logprobs", "2"]
    assert cli.run(["generate", "--server", server.address, "--prompt-ids", ids, *flags]) == 0
    first, *told = json.loads(capsys.readouterr().out)["prompt_logprobs"]
    assert first is None and [one["token_id"] for one in told] == prompt[1:]
    for one, entry in zip(told, whole, strict=True):
        assert one["logprob"] == pytest.approx(entry.logprob, abs=1e-4)
        assert [token for token, _ in one["top"]] == [token for token, _ in entry.top]
    monkeypatch.setattr("medha_jax.client.connection.PART_TOKENS", 16)
    equal(entries(list(client.generate(prompt, prompt_logprobs=2, **STATED))), whole)


def test_what_cannot_be_had_is_refused(client, simulated):
    with Client(simulated.address) as plain:
        for prompt in (PROMPT, "text"):
            error = refusal(plain.generate(prompt, prompt_logprobs=0))
            assert error.code == "INVALID_ARGUMENT" and "without --prompt-logprobs" in error.message
    with pytest.raises(ServerError, match=r"INVALID_ARGUMENT: prompt_logprobs is 21; allowed is \[0, 20\]"):
        list(client.generate(PROMPT, prompt_logprobs=21))
    with pytest.raises(InvalidSettingError, match="prompt_logprobs"):
        client.generate(PROMPT, prompt_logprobs=-1)
