"""The report of a run: one self-contained page, and its figures as files.

May be imported by `training` and everything above; imports `debug`, `data`, `runs` and everything below.
"""
