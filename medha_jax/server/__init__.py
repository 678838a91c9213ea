"""The gRPC service of `medha.v1.Inference`: asyncio beside the engine's thread. Runs no JAX of its own."""
