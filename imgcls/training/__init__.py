"""From a configuration to a finished run folder: building, fitting on one device or several, testing, exporting.

May be imported by `launch` and the commands; imports `report`, `debug`, `callbacks`, `data` and everything below.
"""
