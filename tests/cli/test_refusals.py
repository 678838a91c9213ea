"""Bad input: exit code 2 and one line that says what is allowed."""

import json
import os

import pytest

from tests.cli.command import CONFIG, CONTEXT, refused


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([], "no prompt given; give exactly one of --prompt, --prompt-file, --prompt-ids"),
        (["--prompt", "a", "--prompt-ids", "1"], "--prompt and --prompt-ids given; give exactly one"),
        (["--prompt", ""], "the prompt is empty"),
        (["--prompt-ids", ""], "the prompt is empty"),
        (["--prompt-ids", "1,two"], "'two' is not a token id"),
        (["--prompt-file", "/nowhere/prompt.txt"], "cannot read /nowhere/prompt.txt: No such file or directory"),
        (["--prompt", os.fsdecode(b"\xff")], "not valid Unicode"),
        (["--prompt", "a", "--temperature", "nan"], "temperature is nan; allowed is [0, 100]"),
        (["--prompt", "a", "--top-p", "0"], "top_p is 0.0; allowed is (0, 1]"),
        (["--prompt", "a", "--top-k", "many"], "'--top-k'"),
        (["--prompt", "a", "--max-tokens", "0"], "max_tokens is 0; allowed is [1, inf)"),
        (["--prompt", "a", "--min-tokens", "5", "--max-tokens", "4"], "min_tokens is 5; allowed is [0, 4]"),
        (["--prompt", "a", "--logprobs", "21"], "logprobs is 21; allowed is [0, 20]"),
        (["--prompt", "a", "--logit-bias", "5:1"], "'5:1' is no ID=BIAS, such as 5=-1.5"),
        (["--prompt", "a", "--logit-bias", "5=nan"], "logit_bias of token id 5 is nan; allowed is [-100, 100]"),
        (["--prompt", "a", "--logit-bias", "999=1"], "logit_bias: token id 999 is outside the vocabulary"),
        (["--prompt", "a", "--allowed-token-id", "-1"], "'--allowed-token-id'"),
        (["--prompt", "a", "--stop", ""], "a stop string has 0 characters"),
        (["--prompt", "a", "--stop", "</s>!"], "'</s>!' is never found, because '</s>' is a special token"),
        (["--prompt-ids", "1", "--no-add-special-tokens"], "--add-special-tokens is for a text; the prompt is"),
        (["--prompt", "a", "--generation-config", "vllm"], "'--generation-config'"),
        (["--prompt", "a", "--stop-token-id", "-1"], "'--stop-token-id'"),
        (["--prompt", "a", "--stop-token-id", "99999999999"], "'--stop-token-id'"),
        (["--prompt", "a", "--chunk", "64,0"], "'0' is not a number of tokens; give auto"),
        (["--prompt", "a", "--dtype", "int8"], "'--dtype'"),
        (["--prompt", "a", "--attention", "cuda"], "'--attention'"),
        (["--prompt", "a", "--attention", "triton"], "cannot run here: the kernels need an NVIDIA GPU"),
        (["--prompt", "a", "--kv-dtype", "int8"], "'--kv-dtype'"),
        (["--prompt", "a", "--max-context", "0"], "'--max-context'"),
        (["--prompt", "a", "--max-context", "999"], f"allowed are 1 to {CONTEXT} tokens"),
        (["--prompt", "a", "--no-such-option"], "No such option"),
        (["--prompt-ids", "1,320"], "token id 320 is outside the vocabulary; allowed are 0 to 319"),
        (["--prompt", "a" * 4 * CONTEXT], "allowed are 255"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(generate, arguments, message):
    assert message in refused(generate(*arguments))


def test_model_directory_problems_are_named(medha, model, tmp_path):
    def message():
        return refused(medha("generate", "--model", tmp_path / "m", "--prompt", "a"))

    assert "does not exist; give tiny, or the directory of a Hugging Face model" in message()
    (tmp_path / "m").mkdir()
    assert "no tokenizer.json" in message()
    (tmp_path / "m/tokenizer.json").write_text("{}")
    assert "is not a tokenizer" in message()
    (tmp_path / "m/tokenizer.json").write_bytes((model / "tokenizer.json").read_bytes())
    assert "no config.json" in message()
    (tmp_path / "m/config.json").write_text('{"architectures": ["Mamba2ForCausalLM"]}')
    assert "architecture not supported: Mamba2ForCausalLM; supported are" in message()
    (tmp_path / "m/config.json").write_text(json.dumps(CONFIG))
    assert "safetensors" in message()
    (tmp_path / "m/generation_config.json").write_text('{"top_p": 2}')
    assert "generation_config.json: top_p is 2; allowed is (0, 1]" in message()
    (tmp_path / "m/tokenizer_config.json").write_text("[]")
    assert "tokenizer_config.json holds a list; it must be a JSON object" in message()
    (tmp_path / "m/config.json").write_text("[]")
    (tmp_path / "m/tokenizer_config.json").unlink()
    assert "config.json holds a list; it must be a JSON object" in message()
