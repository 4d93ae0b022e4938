"""The report of a run: one self-contained page, and its figures as files."""

from __future__ import annotations

from imgcls.report.page import write_report

__all__ = ["write_report"]
