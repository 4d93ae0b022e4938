"""The misclassified images with the largest losses."""

from __future__ import annotations

from imgcls.report import selection
from imgcls.report.blocks import Blocks
from imgcls.report.run_data import RunData
from imgcls.report.sections.section import Section
from imgcls.report.thumbnails import pictures


def _make(run: RunData) -> Blocks:
    return pictures(run, selection.top_losses(run.predictions))


SECTION = Section("Top losses", _make)
