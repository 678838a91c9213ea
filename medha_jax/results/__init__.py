"""What requests got, in records, and what is made of them. Real benchmarks and simulations share it. No JAX."""

from medha_jax.results.records import RequestRecord, Status

__all__ = ["RequestRecord", "Status"]
