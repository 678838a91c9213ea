"""The OpenAI API over HTTP/1.1, beside gRPC: it translates, and the calls of `Inference` answer."""
