"""The load generator: requests to a server over gRPC or HTTP at their due times, and what they got. No JAX."""
