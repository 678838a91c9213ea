"""`generate --server`: values as without it, and a server's refusals in its own words."""

import contextlib
import json

import pytest

from medha_jax import cli
from medha_jax.cli.remote import connection
from medha_jax.client import Client
from medha_jax.config import ConfigError
from tests.server.processes import SIMULATED, ServerProcess, wait_until

BAD_TEXT = "a\udcff"  # what a command line has for bytes that are not UTF-8


@pytest.fixture(scope="module")
def busy():
    """A server with one slot and one place in its queue, both taken."""
    with (
        ServerProcess(*SIMULATED, "--slots", 1, "--max-queue", 1, "--tick-ms", 20) as started,
        Client(started.address) as client,
        contextlib.ExitStack() as streams,
    ):
        for running, waiting in ((1, 0), (1, 1)):
            stream = client.generate([5], max_tokens=4000, ignore_eos=True)
            streams.callback(stream.close)
            next(stream)  # accepted; the queue has room again when a tick has begun it
            wait_until(lambda wanted=(running, waiting): (client.load().running, client.load().waiting) == wanted)
        yield started


@pytest.fixture(scope="module")
def free():
    with ServerProcess(*SIMULATED, "--tick-ms", 1, "--context", 512, "--access-log", "text") as started:
        yield started


@pytest.fixture
def ask(capsys):
    def run(server, *arguments):
        code = cli.run(["generate", "--server", server.address, *map(str, arguments)])
        out, err = capsys.readouterr()
        return code, out, err

    return run


def test_a_full_queue_is_no_lack_of_memory(busy, ask):
    code, out, err = ask(busy, "--prompt", "a", "--max-tokens", 5)
    assert (code, out) == (1, "")
    assert err == "error: RESOURCE_EXHAUSTED: 1 requests wait; allowed are 1; come again in 1 s\n"


def test_a_prompt_beyond_the_largest_message_is_told_as_the_server_tells_it(free, ask, tmp_path):
    (tmp_path / "long.txt").write_text("a" * 100_000)
    code, _, err = ask(free, "--prompt-file", tmp_path / "long.txt")
    assert code in (1, 2) and "out of memory" not in err and err.count("\n") == 1
    assert err.startswith(("error: RESOURCE_EXHAUSTED: ", "error: OUT_OF_RANGE: "))


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--max-tokens", -1], "max_tokens is -1; allowed is [1, inf)"),
        (["--max-tokens", 2**32], "max_tokens is 4294967296; a message holds 0 to 4294967295"),
        (["--max-tokens", 600], "INVALID_ARGUMENT: max_tokens is 600; allowed is [1, 511]"),
        (["--min-tokens", 5, "--max-tokens", 4], "min_tokens is 5; allowed is [0, 4] (max_tokens)"),
        (["--top-k", -2], "top_k is -2; allowed is [-1, inf)"),
        (["--seed", 2**63], f"seed is {2**63}; allowed is [0, {2**63 - 1}]"),
        (["--temperature", "nan"], "temperature is nan; allowed is [0, 100]"),
        (["--temperature", "1e400"], "temperature is inf; allowed is [0, 100]"),
        (["--top-p", 0], "top_p is 0.0; allowed is (0, 1]"),
        (
            ["--logit-bias", "5=1", "--logit-bias", "5=2"],
            "logit_bias has two entries of one token id; give each id once",
        ),
        (["--logit-bias", f"{2**32}=1"], "logit_bias is 4294967296; a message holds 0 to 4294967295"),
        (["--logit-bias", "5000=1"], "INVALID_ARGUMENT: logit_bias: token id 5000 is outside the vocabulary"),
        (["--allowed-token-id", 5000], "INVALID_ARGUMENT: allowed_token_ids: token id 5000 is outside the vocabulary"),
        (["--stop", BAD_TEXT], "a stop string is not valid Unicode (lone surrogates); give UTF-8 text"),
        (["--priority", 3], "Invalid value for '--priority': "),
        (["--timeout", "nan"], "Invalid value for '--timeout': "),
        (["--timeout", -1], "Invalid value for '--timeout': "),
    ],
)
def test_bad_values_are_refused_as_without_a_server(free, ask, arguments, message):
    code, out, err = ask(free, "--prompt", "a", *arguments)
    assert (code, out) == (2, "") and err.startswith(f"error: {message}") and err.count("\n") == 1


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--prompt-ids", 2**32], f"token id {2**32}; a message holds 0 to {2**32 - 1}"),
        (["--prompt-ids", 2**32 - 1], f"INVALID_ARGUMENT: token id {2**32 - 1} is outside the vocabulary"),
        (["--prompt", BAD_TEXT], "the prompt is not valid Unicode (lone surrogates); give UTF-8 text"),
        (["--prompt-ids", ",".join(["5"] * 512)], "OUT_OF_RANGE: the prompt has 512 tokens; allowed are 511"),
    ],
)
def test_bad_prompts_are_one_line(free, ask, arguments, message):
    code, out, err = ask(free, *arguments)
    assert (code, out) == (2, "") and err.startswith(f"error: {message}") and err.count("\n") == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ("--top-k", 99999999999),
        ("--timeout", "1e12"),
        ("--timeout", "inf"),
        ("--temperature", "1e-50"),
        ("--top-p", "1e-46"),
        ("--repetition-penalty", "1e-46"),
        ("--seed", 2**63 - 1),
    ],
)
def test_extreme_values_that_mean_something_are_served(free, ask, arguments):
    code, out, err = ask(free, "--prompt", "a", "--max-tokens", 2, "--ignore-eos", "--json", *arguments)
    assert code == 0 and len(json.loads(out)["token_ids"]) == 2, err


def test_several_outputs_are_told_apart(free, ask):
    flags = ("--prompt", "a", "--max-tokens", 3, "--ignore-eos", "--n", 2)
    code, out, err = ask(free, *flags, "--json", "--seed", 2**63 - 1)
    outputs = [json.loads(line) for line in out.splitlines()]
    assert code == 0 and [(one["index"], one["seed"]) for one in outputs] == [(0, 2**63 - 1), (1, 0)], err
    assert [len(one["token_ids"]) for one in outputs] == [3, 3]
    code, out, _ = ask(free, *flags)
    assert (code, out) == (0, "".join(f"--- {one['index']} ---\n{one['text']}\n" for one in outputs))
    for wrong in (0, 9):
        code, out, err = ask(free, "--prompt", "a", "--n", wrong)
        assert (code, out) == (2, "") and "'--n'" in err and err.count("\n") == 1, err


@pytest.mark.parametrize("content", ["a-token\n", "\n  name a-token\nother b-token\n", "a-token\nb-token"])
def test_the_token_of_the_first_line_is_sent_with_or_without_a_name(tmp_path, content):
    (tmp_path / "tokens").write_text(content)
    assert connection("localhost:1", tmp_path / "tokens", None).token == "a-token"


@pytest.mark.parametrize(
    ("content", "why"), [("\n", "holds no token"), ("a b a-token\n", "its first line has 3 words")]
)
def test_a_file_without_a_token_is_refused(tmp_path, content, why):
    (tmp_path / "tokens").write_text(content)
    with pytest.raises(ConfigError, match=why) as raised:
        connection("localhost:1", tmp_path / "tokens", None)
    assert "a-token" not in str(raised.value)


def test_an_address_that_is_no_text_is_refused(capsys):
    assert cli.run(["generate", "--server", "\udcff:1", "--prompt", "a"]) == 2
    assert capsys.readouterr().err == "error: the address is not valid Unicode (lone surrogates); give UTF-8 text\n"


def test_a_priority_goes_to_the_server_and_into_its_log(free, ask, tmp_path):
    given = "--prompt", "a", "--max-tokens", 2, "--ignore-eos", "--priority", -1
    code, _, err = ask(free, *given)
    assert code == 0, err
    wait_until(lambda: "priority=-1" in free.errors)
    assert cli.run(["generate", "--prompt", "a", "--priority", "1"]) == 2, "nobody else is served"


@pytest.mark.parametrize("flag", ["--add-special-tokens", "--no-add-special-tokens"])
def test_what_the_tokenizer_adds_can_be_stated(free, ask, flag):
    code, out, err = ask(free, "--prompt", "a", "--max-tokens", 2, "--ignore-eos", "--json", flag)
    assert code == 0 and len(json.loads(out)["token_ids"]) == 2, err
