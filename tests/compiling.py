"""What programs are compiled with in tests.

Compiling is most of what the tests do. XLA's emitters of fused loops make fast programs and take half of that time, so
programs go without, LLVM does not optimise, and a program's code is made in one part, not in up to 32; here and in
commands that tests start. What is computed stays the same.
Where ticks are many, some optimisation pays; and the comparisons with transformers run what users run.

XLA ends the process at an option that it does not know, so only options that the installed jaxlib has are stated.
"""

import jaxlib

EMITTERS = "xla_cpu_use_fusion_emitters"
LEVEL = "xla_backend_optimization_level"
CHEAP = "xla_llvm_disable_expensive_passes"
PARTS = "xla_cpu_parallel_codegen_split_count"

# jaxlib 0.11.1 has no other way to make fused loops than the emitters, and no option for them.
WITHOUT_EMITTERS = {EMITTERS: False} if jaxlib.version.__version_info__ < (0, 11, 1) else {}

AT_ONCE = {**WITHOUT_EMITTERS, LEVEL: 0, CHEAP: True, PARTS: 1}
FOR_MANY_TICKS = {LEVEL: 1, CHEAP: False, PARTS: 1}
AS_USERS = {**dict.fromkeys(WITHOUT_EMITTERS, True), LEVEL: 3, CHEAP: False}


def xla_flags(before: str, options: dict[str, int]) -> str:
    """`XLA_FLAGS` with options, of which the last counts."""
    return " ".join([before, *(f"--{name}={str(value).lower()}" for name, value in options.items())])
