"""Watching a training: statistics of its tensors while it runs, and rules that say what is wrong with them.

May be imported by `report`, `training` and what is above them; imports `callbacks`, `data` and what is below.
"""
