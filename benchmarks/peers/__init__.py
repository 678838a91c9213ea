"""Another server beside ours: the same model, requests and seed, one server at a time, on one machine."""
