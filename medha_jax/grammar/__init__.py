"""Grammars that outputs follow: JSON schemas, regular expressions, Lark; no JAX."""
