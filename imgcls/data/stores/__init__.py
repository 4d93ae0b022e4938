"""Where decoded pixels and features are held: memory, disk or device, found again by the next run.

May be imported by `data.module` and everything above it; imports `data` and `system`.
"""
