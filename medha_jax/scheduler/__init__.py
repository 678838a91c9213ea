"""The scheduler decides which chunk of which request runs next. No JAX and no clock: callers pass the time in."""
