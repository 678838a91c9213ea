"""Other systems as they really behave, for comparison with ours on the same requests and the same cost model."""
