"""Simulated traffic: the serving engine and scheduler on a virtual clock, with a time model in place of devices."""
