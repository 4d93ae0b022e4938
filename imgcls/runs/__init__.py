"""The run folder: writing it, reading it, and using a finished run.

May be imported by `data` and everything above; imports `config`, `aws` and `system`. `Run` imports the report and the
portable model, which are above it, only when they are used.
"""

from imgcls.runs.run import Page, Run, load

__all__ = ["Page", "Run", "load"]
