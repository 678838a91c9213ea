"""Facts of a model directory and a layout, and the arithmetic on them; no JAX."""
