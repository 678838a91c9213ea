"""The attention options that commands with a runtime have: what computes it, and the KV cache's precision."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer


class KvDtype(StrEnum):
    """Precision of the KV cache: that of the activations, or eight bits (e4m3)."""

    AUTO = "auto"
    FP8 = "fp8"


class AttentionKind(StrEnum):
    """What computes attention: XLA, the Triton kernels, or the kernels where they run."""

    AUTO = "auto"
    XLA = "xla"
    TRITON = "triton"


KvDtypeOption = Annotated[
    KvDtype, typer.Option(help="Of the KV cache; auto: that of the activations, fp8: half the bytes of bfloat16.")
]
AttentionOption = Annotated[
    AttentionKind, typer.Option(help="auto: the Triton kernels on NVIDIA GPUs where they run, else XLA.")
]
