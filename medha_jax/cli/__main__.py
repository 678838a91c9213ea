"""`python -m medha_jax.cli` is `medha-jax`."""

from medha_jax.cli import main

main()
