"""Watching a training: statistics of its tensors while it runs, and rules that say what is wrong with them."""
