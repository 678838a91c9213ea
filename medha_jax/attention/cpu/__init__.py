"""Attention on CPUs, by functions that LLVM compiles for the processor at hand."""
