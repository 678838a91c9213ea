"""The gRPC service `medha.v1.Inference`: an asyncio loop beside the engine's thread, without JAX of its own."""
