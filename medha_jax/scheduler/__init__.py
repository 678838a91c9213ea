"""The scheduler: which chunk of which request runs next. Pure Python and NumPy, no JAX; time is passed in."""
