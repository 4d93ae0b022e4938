"""Searches: a space in Hydra's syntax, a study that survives anything, and what it found."""
