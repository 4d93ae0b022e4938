"""A few of all test images."""

from __future__ import annotations

from imgcls.report import selection
from imgcls.report.blocks import Blocks, Pictures
from imgcls.report.run_data import RunData
from imgcls.report.sections.section import Section
from imgcls.report.thumbnails import describe


def _make(run: RunData) -> Blocks:
    rows = selection.samples(run.predictions)
    return [Pictures(describe(run, rows))] if rows else []


SECTION = Section("Samples", _make)
