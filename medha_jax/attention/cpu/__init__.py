"""Attention of decodes on CPUs, by a function that LLVM compiles for the processor at hand."""
