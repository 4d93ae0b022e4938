"""The run folder: who may write it, what is in it, and a finished run at work again.

May be imported by `data` and everything above; imports `config`, `aws` and `system`. `Run` opens the report and the
portable model, which are above it, when it is asked for them.
"""

from imgcls.runs.run import Page, Run, load

__all__ = ["Page", "Run", "load"]
