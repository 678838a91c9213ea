"""Measurements on an NVIDIA GPU, each against a ceiling of the same run. RESULTS.md holds what they gave."""
