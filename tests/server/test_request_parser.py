from __future__ import annotations

import pytest

from medha_jax.engine import GenerationRequest
from medha_jax.protos import inference_pb2 as pb
from medha_jax.server.refusal import Refusal
from medha_jax.server.request_parser import RequestParser, ServedModel
from medha_jax.server.settings import Limits
from medha_jax.text import Tokenizer
from tests.text.tiny_tokenizers import byte_level

BOS, EOS = 0, 1
PARSER = RequestParser(ServedModel("small", Tokenizer(byte_level()), 320, 512, eos_ids=(EOS,)), Limits())
PLAIN = PARSER.tokens("fox")


def whole(prompt: str | list[int], sampling: pb.SamplingSettings | None = None, **fields: bool) -> GenerationRequest:
    settings = pb.GenerateSettings(sampling=sampling)
    if isinstance(prompt, str):
        return PARSER.whole(pb.GenerateRequest(text=prompt, settings=settings, **fields), None, "")
    return PARSER.whole(pb.GenerateRequest(token_ids=pb.PromptIds(ids=prompt), settings=settings, **fields), None, "")


@pytest.mark.parametrize(
    ("text", "fields", "expected"),
    [
        ("fox", {}, [*PLAIN]),
        ("fox", {"add_special_tokens": True}, [*PLAIN]),
        ("<s>fox", {}, [*PLAIN]),
        ("fox", {"add_special_tokens": False}, [*PLAIN[1:]]),
        ("<s>fox", {"add_special_tokens": False}, [*PLAIN]),
    ],
)
def test_a_text_gets_the_special_tokens_that_were_asked_for(
    text: str, fields: dict[str, bool], expected: list[int]
) -> None:
    assert PLAIN[0] == BOS and len(PLAIN) > 1
    assert [*whole(text, **fields).prompt_ids] == expected
    assert [*PARSER.tokenized(pb.TokenizeRequest(text=text, **fields))] == expected


def test_ids_get_none_and_refuse_the_field() -> None:
    assert [*whole([5, 6]).prompt_ids] == [5, 6]
    with pytest.raises(Refusal, match="add_special_tokens is for a text; the prompt is token_ids"):
        whole([5, 6], add_special_tokens=False)


def test_special_tokens_are_left_out_unless_asked_for() -> None:
    assert whole("fox").sampling.skip_special_tokens
    assert not whole("fox", pb.SamplingSettings(skip_special_tokens=False)).sampling.skip_special_tokens


def test_a_stop_that_no_text_can_have_is_refused() -> None:
    stop = ["</s>\n"]
    with pytest.raises(Refusal, match="is never found, because '</s>' is a special token"):
        whole("fox", pb.SamplingSettings(stop=stop))
    shown = whole("fox", pb.SamplingSettings(stop=stop, skip_special_tokens=False))
    assert shown.sampling.stop == ("</s>\n",)
    assert whole("fox", pb.SamplingSettings(stop=["</s>"])).sampling.stop == ("</s>",)


def test_biases_and_allowed_tokens_are_taken_where_they_are_stated() -> None:
    plain = whole("fox").sampling
    assert (plain.logit_bias, plain.allowed_token_ids) == ((), None)
    stated = pb.SamplingSettings(logit_bias={7: 1.5, 3: -100}, allowed_token_ids=pb.AllowedTokens(ids=[9, 7]))
    sampling = whole("fox", stated).sampling
    assert (sampling.logit_bias, sampling.allowed_token_ids) == (((3, -100.0), (7, 1.5)), (9, 7))
    with pytest.raises(Refusal, match="allowed_token_ids has 0 ids; allowed are 1 to 1024"):
        whole("fox", pb.SamplingSettings(allowed_token_ids=pb.AllowedTokens()))
