"""Watches a training: statistics of its tensors while it runs, and rules that find what is wrong with them.

May be imported by `report`, `training` and everything above; imports `callbacks`, `data` and everything below.
"""
