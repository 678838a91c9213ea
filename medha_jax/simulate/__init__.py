"""Simulated traffic: engine and scheduler run on a virtual clock, and a time model replaces the devices."""
