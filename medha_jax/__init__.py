"""A long-context LLM serving runtime in JAX.

This module imports nothing, so that the parts that need no JAX can be used without it.
"""

__version__ = "0.1.0"
