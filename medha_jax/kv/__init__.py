"""Which pages of the KV pool a request holds; the pool itself is on the devices (`attention.pool`)."""
