"""What requests got, in records, and what is made of them. Real benchmarks and simulations share it. No JAX."""

from medha_jax.results.records import Counted, RequestRecord, Status

__all__ = ["Counted", "RequestRecord", "Status"]
