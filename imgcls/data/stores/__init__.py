"""Stores of decoded pixels and features: in memory, on disk, where the next run finds them, or on the device.

May be imported by `data.module` and everything above it; imports `data` and `system`.
"""
