"""Searches: a space in Hydra's syntax, a study that survives anything, and what it found.

May be imported by the commands and `deploy`; imports `launch`, `training` and what is below.
"""
