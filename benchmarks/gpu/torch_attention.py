"""Flash attention of PyTorch on the same shapes, as one JSON line: `python -m benchmarks.gpu.torch_attention`.

It needs its own process, because PyTorch and JAX would share the GPU's memory. All queries see the whole context here,
and the work is counted so; queries are few compared with the context.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from typing import Any

HEADS, KV_HEADS, HEAD_DIM = 32, 8, 128


def seconds(torch: Any, queries: int, context: int) -> float:
    """Median seconds of one layer, bfloat16, by the flash backend."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    def draw(heads: int, tokens: int) -> Any:
        return torch.randn(1, heads, tokens, HEAD_DIM, device="cuda", dtype=torch.bfloat16)

    q, k, v = draw(HEADS, queries), draw(KV_HEADS, context), draw(KV_HEADS, context)
    attend = torch.nn.functional.scaled_dot_product_attention
    rounds = []
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        for _ in range(7):
            torch.cuda.synchronize()
            started = time.perf_counter()
            for _ in range(3):
                attend(q, k, v, enable_gqa=True)
            torch.cuda.synchronize()
            rounds.append((time.perf_counter() - started) / 3)
    return statistics.median(rounds[2:])


def main(loads: list[str]) -> None:
    """Print {"QUERIES@CONTEXT": TFLOP/s} for loads of the form QUERIES@CONTEXT."""
    import torch

    rates: dict[str, float | str] = {}
    for load in loads:
        queries, context = map(int, load.split("@"))
        flops = 4 * HEADS * HEAD_DIM * queries * context
        try:
            rates[load] = flops / seconds(torch, queries, context) / 1e12
        except RuntimeError as error:
            rates[load] = str(error).splitlines()[0]
    print(json.dumps({"torch": torch.__version__, "rates": rates}))


if __name__ == "__main__":
    main(sys.argv[1:])
