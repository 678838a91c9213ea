"""Golden outputs of Hugging Face transformers for small random models of every family and RoPE rule.

Run `python -m tools.make_goldens` with the extra `reference`. It rewrites `tests/golden/`; the live tests call the same
functions. Prompts are redrawn until the best two logits of every step are at least `GAP` apart, so that rounding in the
last bit cannot change a token.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
ROPES = ("default", "linear", "dynamic", "llama3", "yarn")
PROMPT_LENGTHS = (1, 63, 64, 65, 1000, 5000)
NEW_TOKENS = 64
VOCAB = 256
GAP = 2e-3
GOLDEN = Path(__file__).parent.parent / "tests" / "golden"

CLASSES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}
ROPE_PARAMETERS: dict[str, dict[str, Any]] = {
    "default": {},
    "linear": {"factor": 4.0},
    "dynamic": {"factor": 8.0},
    "llama3": {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 1024,
    },
    "yarn": {"factor": 8.0, "original_max_position_embeddings": 1024},
}


@dataclass(frozen=True)
class Golden:
    """Transformers' output for one prompt: `tokens` `[NEW_TOKENS]` and their fp32 logits."""

    prompt: np.ndarray
    tokens: np.ndarray
    logits: np.ndarray

    @property
    def gap(self) -> float:
        """Smallest distance between the best and the second-best logit of any step."""
        best = np.sort(self.logits, -1)
        return float((best[:, -1] - best[:, -2]).min())


def config(family: str, rope: str) -> dict[str, Any]:
    """The `config.json` of a small model; stretched contexts start from 1024 positions."""
    stretched = rope in ("linear", "dynamic", "yarn")
    return {
        "architectures": [CLASSES[family]],
        "model_type": family,
        "vocab_size": VOCAB,
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        # Qwen2 derives it from the hidden size; the others set it
        "head_dim": 16 if family == "qwen2" else 24,
        "intermediate_size": 96,
        "max_position_embeddings": 1024 if rope in ("dynamic", "yarn") else 2048 if stretched else 8192,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "rope_scaling": None if rope == "default" else {"rope_type": rope, **ROPE_PARAMETERS[rope]},
        "tie_word_embeddings": family == "mistral",
        "attention_bias": family == "qwen3",
        "mlp_bias": family == "llama",
        "hidden_act": "silu",
        "sliding_window": None,
        "use_sliding_window": False,
        "torch_dtype": "float32",
    }


def random_model(family: str, seed: int, gain: float = 0.7) -> dict[str, Any]:
    """A state dict of bf16-representable fp32 tensors, scaled so that greedy choices are clear.

    A matrix has standard deviation `gain` / sqrt(inputs). A larger gain amplifies rounding: at 1.2, logits of some
    models differed from this runtime's by up to 2e-4; at 0.7, all were within 1e-4.
    """
    import torch

    torch.manual_seed(seed)
    model = _model(config(family, "default"))
    for name, tensor in model.state_dict().items():
        if "norm" in name:
            tensor.copy_(1 + 0.1 * torch.randn_like(tensor))
        else:
            tensor.copy_(torch.randn_like(tensor) * (0.5 if tensor.ndim == 1 else gain / tensor.shape[-1] ** 0.5))
        tensor.copy_(tensor.bfloat16().float())
    return {k: v for k, v in model.state_dict().items() if not (family == "mistral" and k == "lm_head.weight")}


def _model(stated: dict[str, Any]) -> Any:
    import torch
    import transformers

    kind = getattr(transformers, stated["architectures"][0])
    settings = {k: v for k, v in stated.items() if k not in ("architectures", "torch_dtype")}
    torch.set_grad_enabled(False)
    return kind(kind.config_class(**settings)).to(torch.float32).eval()


def run(stated: dict[str, Any], state: dict[str, Any], prompt: np.ndarray) -> Golden:
    """Continue a prompt greedily with transformers, eager attention and fp32."""
    import torch

    model = _model(stated)
    model.set_attn_implementation("eager")
    model.load_state_dict(state, strict=not stated["tie_word_embeddings"])
    model.generation_config.eos_token_id = None
    out = model.generate(
        torch.tensor(prompt, dtype=torch.long)[None],
        attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        do_sample=False,
        max_new_tokens=NEW_TOKENS,
        output_logits=True,
        return_dict_in_generate=True,
        pad_token_id=0,
    )
    logits = torch.cat(out.logits).numpy()
    return Golden(prompt, out.sequences[0, len(prompt) :].numpy().astype(np.int32), logits)


def decisive(stated: dict[str, Any], state: dict[str, Any], length: int, seed: int) -> Golden:
    """The golden of a random prompt; the best two logits of every step are at least `GAP` apart."""
    rng = np.random.default_rng([seed, length])
    while True:
        golden = run(stated, state, rng.integers(0, VOCAB, length, dtype=np.int32))
        if golden.gap >= GAP:
            return golden


def main() -> None:
    """Rewrite `tests/golden/`: bf16 weights per family, and a config and outputs per RoPE rule."""
    import torch
    from safetensors.torch import save_file

    for number, family in enumerate(FAMILIES):
        state = random_model(family, seed=number)
        folder = GOLDEN / family
        folder.mkdir(parents=True, exist_ok=True)
        weights = {k: v.to(torch.bfloat16).contiguous() for k, v in state.items()}
        save_file(weights, folder / "model.safetensors", {"format": "pt"})
        for rope in ROPES:
            stated = config(family, rope)
            (folder / f"{rope}.json").write_text(json.dumps(stated, indent=1) + "\n")
            arrays: dict[str, np.ndarray] = {}
            for length in PROMPT_LENGTHS:
                golden = decisive(stated, state, length, seed=number)
                arrays[f"prompt_{length}"] = golden.prompt.astype(np.uint8)
                arrays[f"tokens_{length}"] = golden.tokens.astype(np.uint8)
                arrays[f"logits_{length}"] = golden.logits[[0, -1]]
                print(f"{family} {rope} {length}: gap {golden.gap:.4f}", flush=True)
            np.savez_compressed(folder / f"{rope}.npz", allow_pickle=False, **arrays)


if __name__ == "__main__":
    main()
