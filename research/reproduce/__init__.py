"""The Medha paper's evaluation, simulated: each figure beside the published one, with the ratio."""
