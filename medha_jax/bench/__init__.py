"""The load generator: sends requests to a server over gRPC or HTTP at their due times. No JAX."""
