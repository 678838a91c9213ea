"""A process that compiles grammars before the server does: `python -m medha_jax.grammar.trial`.

Nothing can end a thread that compiles for hours or takes all memory. Its parent can end this process. It reads one JSON
value a line: first the facts of the tokens, then specs. To each it answers with a line: null, or why not.
"""

from __future__ import annotations

import json
import resource
import sys
import time

from medha_jax.grammar.guidance import TokenFacts, compiled
from medha_jax.grammar.spec import GrammarError, GrammarSpec

MEMORY_BYTES = 4 * 2**30  # of its addresses; a tokenizer of 150,000 tokens takes some hundred MB
CPU_SECONDS = 10  # for one answer: it ends by itself if its parent is gone


def main() -> None:
    """Answer until the parent closes the pipe."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    tokenizer = None
    for line in sys.stdin:
        stated, error = json.loads(line), None
        _, most = resource.getrlimit(resource.RLIMIT_CPU)
        seconds = CPU_SECONDS if tokenizer is not None else 10 * CPU_SECONDS
        resource.setrlimit(resource.RLIMIT_CPU, (int(time.process_time()) + seconds, most))
        try:
            if tokenizer is None:
                tokenizer = TokenFacts(stated["tokenizer"], stated["vocab"], tuple(stated["eos_ids"])).open()
            else:
                compiled(tokenizer, GrammarSpec(stated["kind"], stated["text"]))
        except GrammarError as refused:
            error = str(refused)
        print(json.dumps(error), flush=True)


if __name__ == "__main__":
    main()
