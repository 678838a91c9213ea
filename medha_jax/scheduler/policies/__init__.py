"""Which prompt goes first: the interface (`base`), policies from the literature (`formulas`), and RED (`red`)."""
