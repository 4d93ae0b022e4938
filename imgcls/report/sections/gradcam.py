"""The regions that a convolutional network used."""

from __future__ import annotations

from imgcls.report.blocks import Blocks, Pictures, Text
from imgcls.report.run_data import RunData
from imgcls.report.sections.section import Section


def _make(run: RunData) -> Blocks:
    stored = run.image_data("gradcam")
    if not stored.get("pictures"):
        return [Text(stored["reason"])] if stored.get("reason") else []
    shown = [
        {"image": row["image"], "file": file, "label": row["shown"], "predicted": row["seen"], "note": ""}
        for file, row in stored["pictures"].items()
    ]
    return [Text("Bright regions contributed most to the predicted class."), Pictures(shown)]


SECTION = Section("Grad-CAM", _make)
