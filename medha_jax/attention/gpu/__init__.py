"""Attention on NVIDIA GPUs: Triton kernels, their work lists and their launch configurations.

Importing this needs neither Triton nor a GPU; `kernels` and `call` do, and are imported when a kernel is traced.
"""
