"""The sections of a run's report, one module each, in the order of the page.

May be imported by the pages in `report`; a section imports the other modules of `report`, and no other section.
"""

from __future__ import annotations

from collections.abc import Sequence

from imgcls.report.sections import (
    audit,
    calibration,
    class_curves,
    classes,
    configuration,
    confusion,
    curves,
    data,
    doubt,
    errors,
    feature_map,
    folds,
    gradcam,
    learning_rate,
    log,
    precision_recall,
    profile,
    rules,
    samples,
    soup,
    thresholds,
)
from imgcls.report.sections.section import Section

SECTIONS: Sequence[Section] = (
    folds.SECTION,
    curves.SECTION,
    learning_rate.SECTION,
    soup.SECTION,
    confusion.SECTION,
    classes.SECTION,
    class_curves.SECTION,
    precision_recall.SECTION,
    errors.SECTION,
    thresholds.SECTION,
    calibration.SECTION,
    doubt.SECTION,
    samples.SECTION,
    gradcam.SECTION,
    feature_map.SECTION,
    audit.SECTION,
    data.SECTION,
    rules.SECTION,
    profile.SECTION,
    log.SECTION,
    configuration.SECTION,
)
