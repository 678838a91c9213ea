"""Options that commands with a runtime have: what computes attention, the KV cache's precision, XLA's settings."""

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


class XlaOptions(StrEnum):
    """What ticks on a GPU are compiled with: the runtime's settings, or XLA's own."""

    AUTO = "auto"
    NONE = "none"


KvDtypeOption = Annotated[
    KvDtype, typer.Option(help="Of the KV cache; auto: that of the activations, fp8: half the bytes of bfloat16.")
]
AttentionOption = Annotated[
    AttentionKind, typer.Option(help="auto: the Triton kernels on NVIDIA GPUs where they run, else XLA.")
]
XlaOptionsOption = Annotated[
    XlaOptions,
    typer.Option(help="auto: command buffers and latency hiding for ticks on GPUs; none: XLA's own settings."),
]
