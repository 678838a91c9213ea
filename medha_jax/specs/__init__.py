"""What a model directory and a layout say, and what follows from it by arithmetic alone; no JAX."""
