"""Access to the machine: atomic files, locks, signals, logs, progress bars, caches, optional packages.

May be imported from anywhere; imports only `errors`, and neither torch nor Hydra.
"""
