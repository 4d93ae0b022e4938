"""Lightning callbacks that every run has: history, checkpoints, timing, the progress bar, early stopping.

May be imported by `debug` and everything above; imports `system`.
"""
