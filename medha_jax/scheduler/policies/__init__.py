"""Which prompt goes first: what a policy is (`base`), those of the literature (`formulas`), and RED (`red`)."""
