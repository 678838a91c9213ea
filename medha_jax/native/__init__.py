"""Functions that LLVM compiles for the processor at hand, and that XLA calls in its programs on CPUs."""
