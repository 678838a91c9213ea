"""What a mesh over several processes refuses before anybody connects."""

from dataclasses import replace
from pathlib import Path

import pytest

from medha_jax.config import RuntimeConfig
from medha_jax.runtime.cluster.membership import ClusterConfig
from medha_jax.runtime.cluster.start import follow, lead
from medha_jax.specs.layout import LayoutError


@pytest.mark.parametrize("begin", [lead, follow])
def test_prompts_are_scored_by_one_process_only(begin, model: Path) -> None:
    config = replace(RuntimeConfig(model=model), prompt_logprobs=True)
    with pytest.raises(LayoutError, match="prompt_logprobs is for a mesh in one process"):
        begin(config, ClusterConfig(coordinator="127.0.0.1:1", processes=2, process=0), lambda line: None)
