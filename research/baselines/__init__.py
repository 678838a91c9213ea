"""Other systems as they really behave, to compare on the same requests and the same cost model."""
