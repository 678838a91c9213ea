"""The KV cache: which pages a request holds, and the device pool that they are pages of."""
