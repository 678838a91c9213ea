"""Prompts and answers of conversations against transformers' `apply_chat_template` and its greedy generation."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medha_jax.chat import ChatTemplate
from medha_jax.engine import Completed, GenerationRequest, OfflineEngine
from medha_jax.plan import SamplingParams
from medha_jax.protos import inference_pb2 as pb
from medha_jax.runtime import open_executor
from medha_jax.server.request_parser import RequestParser, ServedModel
from medha_jax.server.settings import Limits
from medha_jax.text import Tokenizer
from tests.chat.conversations import COUNT, TEMPLATES, as_clients_send, conversations
from tests.reference.test_golden import runtime
from tests.text.tiny_tokenizers import byte_level, sentencepiece
from tools.make_goldens import config, random_model

pytestmark = pytest.mark.reference

BOS, EOS = "<s>", "</s>"
# tokens of the families; which of them are special is as in their own tokenizers
MARKS = {
    "llama3_json": ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|python_tag|>"],
    "mistral_v3": ["[INST]", "[/INST]", "[TOOL_CALLS]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_RESULTS]"],
    "qwen": ["<|im_start|>", "<|im_end|>"],
}
MARKS |= {"mistral_nemo": MARKS["mistral_v3"], "mistral_v13": [*MARKS["mistral_v3"], "[ARGS]", "[SYSTEM_PROMPT]"]}
PLAIN = {"qwen": ["<tool_call>", "</tool_call>", "<think>", "</think>"]}
FAMILIES = {"llama3_json": "llama", "mistral_nemo": "mistral", "qwen2_5": "qwen2", "qwen3": "qwen3"}
ANSWERS, NEW_TOKENS = 50, 16


def model_directory(directory: Path, name: str) -> Path:
    """A tokenizer with the tokens of a family, which adds a BOS to texts, and the family's template."""
    backend = sentencepiece() if name == "mistral_v3" else byte_level()
    family = "qwen" if name.startswith("qwen") else name
    backend.add_special_tokens(MARKS[family])
    backend.add_tokens(PLAIN.get(family, []))
    backend.save(str(directory / "tokenizer.json"))
    (directory / "chat_template.jinja").write_text(TEMPLATES[name], encoding="utf-8")
    stated = {"bos_token": BOS, "eos_token": EOS, "tokenizer_class": "PreTrainedTokenizerFast"}
    (directory / "tokenizer_config.json").write_text(json.dumps(stated))
    return directory


def reference(directory: Path) -> Any:
    transformers = pytest.importorskip("transformers")
    return transformers.PreTrainedTokenizerFast.from_pretrained(directory)


@pytest.mark.parametrize("name", sorted(TEMPLATES))
def test_prompts_are_those_of_transformers(tmp_path: Path, name: str) -> None:
    theirs = reference(model_directory(tmp_path, name))
    ours, tokenizer = ChatTemplate.from_directory(tmp_path), Tokenizer.from_directory(tmp_path)
    assert ours is not None
    parser = RequestParser(ServedModel(name, tokenizer, 10**6, 10**6, chat_template=ours), Limits())
    given = [*conversations(name)]
    assert len(given) == COUNT >= 50
    for messages, tools in given:
        for ends in (True, False):
            expected = theirs.apply_chat_template(messages, tools, add_generation_prompt=ends, tokenize=False)
            assert ours.render(messages, tools, add_generation_prompt=ends) == expected
            assert ours.render(as_clients_send(messages), tools, add_generation_prompt=ends) == expected
        ids = theirs.apply_chat_template(messages, tools, add_generation_prompt=True, return_dict=False)
        text = theirs.apply_chat_template(messages, tools, add_generation_prompt=True, tokenize=False)
        assert [*parser.tokens(text, add_special=False)] == ids
        begins = ids[: ids.count(theirs.bos_token_id)]
        assert theirs.bos_token_id not in begins[1:]


@pytest.mark.parametrize("name", ["llama3_json", "mistral_v13", "qwen2_5", "qwen3"])
def test_final_messages_go_on_as_in_transformers(tmp_path: Path, name: str) -> None:
    theirs, ours = reference(model_directory(tmp_path, name)), ChatTemplate.from_directory(tmp_path)
    assert ours is not None
    for content in ("Of course:", "Of course: \n", "a", "é 東京"):
        messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": content}]
        expected = theirs.apply_chat_template(messages, continue_final_message=True, tokenize=False)
        assert ours.render(messages, add_generation_prompt=False, continue_final_message=True) == expected


@pytest.mark.parametrize("name", sorted(TEMPLATES))
def test_variables_and_parts_are_given_as_in_transformers(tmp_path: Path, name: str) -> None:
    theirs, ours = reference(model_directory(tmp_path, name)), ChatTemplate.from_directory(tmp_path)
    assert ours is not None
    plain = [{"role": "user", "content": "hi"}]
    for variables in ({"enable_thinking": False}, {"date_string": "1 May 2030", "bos_token": "<x>"}):
        expected = theirs.apply_chat_template(plain, add_generation_prompt=True, tokenize=False, **variables)
        assert ours.render(plain, variables=variables) == expected
    if name in ("llama3_json", "mistral_v13"):  # those that go through the parts
        parts = [{"role": "user", "content": [{"type": "text", "text": "a "}, {"type": "text", "text": "b"}]}]
        expected = theirs.apply_chat_template(parts, add_generation_prompt=True, tokenize=False)
        assert ours.render(parts) == expected


@pytest.mark.usefixtures("as_users_compile")
@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_answers_are_those_of_transformers(tmp_path: Path, name: str) -> None:
    """Text for text, for 50 conversations: rendered, tokenized, generated greedily and detokenized by both."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    from safetensors.torch import save_file

    theirs = reference(model_directory(tmp_path, name))
    tokenizer, template = Tokenizer.from_directory(tmp_path), ChatTemplate.from_directory(tmp_path)
    stated, state = config(FAMILIES[name], "default"), random_model(FAMILIES[name], seed=77)
    stated = stated | {"vocab_size": len(theirs)}
    state = widened(state, len(theirs))
    save_file({k: v.contiguous() for k, v in state.items()}, tmp_path / "model.safetensors", {"format": "pt"})
    (tmp_path / "config.json").write_text(json.dumps(stated))
    kind = getattr(transformers, stated["architectures"][0])
    settings = {k: v for k, v in stated.items() if k not in ("architectures", "torch_dtype")}
    torch.set_grad_enabled(False)
    model = kind(kind.config_class(**settings)).to(torch.float32).eval()
    model.set_attn_implementation("eager")
    model.load_state_dict(state, strict=not stated["tie_word_embeddings"])
    model.generation_config.eos_token_id = theirs.eos_token_id

    served = ServedModel(name, tokenizer, len(theirs), 5120, eos_ids=(theirs.eos_token_id,), chat_template=template)
    parser = RequestParser(served, Limits())
    engine = OfflineEngine(open_executor(runtime(tmp_path), lambda line: None), tokenizer, time.perf_counter)
    expected: list[tuple[list[int], str]] = []
    for messages, tools in conversations(name, count=4 * COUNT):
        ids = theirs.apply_chat_template(messages, tools, add_generation_prompt=True, return_tensors="pt")["input_ids"]
        if ids.shape[1] > 1000:
            continue
        out = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=NEW_TOKENS,
            output_logits=True,
            return_dict_in_generate=True,
            pad_token_id=0,
        )
        best = np.sort(torch.cat(out.logits).numpy(), -1)
        if (best[:, -1] - best[:, -2]).min() < 5e-4:
            continue  # rounding in the last bit may choose
        new = out.sequences[0, ids.shape[1] :].tolist()
        expected.append((new, theirs.decode(new, skip_special_tokens=True, clean_up_tokenization_spaces=False)))
        chat = pb.Chat(messages=[message(one) for one in messages], tools=[json.dumps(tool) for tool in tools or ()])
        request = parser.whole(pb.GenerateRequest(chat=chat), None, "")
        assert [*request.prompt_ids] == ids[0].tolist()
        greedy = SamplingParams(temperature=0, max_tokens=NEW_TOKENS)
        engine.add(GenerationRequest(tuple(request.prompt_ids), greedy, request.eos_ids))
        if len(expected) == ANSWERS:
            break
    assert len(expected) == ANSWERS
    completions = {}
    while engine.busy:
        completions |= {number: event.completion for number, event in engine.step() if isinstance(event, Completed)}
    for number, (new, text) in enumerate(expected):
        assert [*completions[number].token_ids] == new
        assert completions[number].text == text


def message(given: dict[str, Any]) -> pb.ChatMessage:
    calls = [
        pb.ChatToolCall(
            id=call["id"], name=call["function"]["name"], arguments=json.dumps(call["function"]["arguments"])
        )
        for call in given.get("tool_calls", ())
    ]
    return pb.ChatMessage(**{k: v for k, v in given.items() if k != "tool_calls"}, tool_calls=calls)


def widened(state: dict[str, Any], vocab: int) -> dict[str, Any]:
    """The weights with rows of their own for the tokens that a family has beyond the model's vocabulary."""
    import torch

    torch.manual_seed(7)
    names = [name for name in state if "embed_tokens" in name or "lm_head" in name]
    for name in names:
        rows = torch.randn(vocab, state[name].shape[1]) * state[name].std()
        rows[: state[name].shape[0]] = state[name][:vocab]
        state[name] = rows.bfloat16().float()
    return state
