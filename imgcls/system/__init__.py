"""The machine below everything: files written whole, locks, signals, logs, bars, caches, optional packages.

May be imported from anywhere; imports `errors` alone, and neither torch nor Hydra.
"""
