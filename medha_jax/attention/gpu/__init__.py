"""Attention on NVIDIA GPUs: Triton kernels, their work lists and their launch configurations.

Importing this package needs neither Triton nor a GPU. `kernels` and `call` need Triton; tracing a kernel imports them.
"""
