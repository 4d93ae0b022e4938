"""The small training that most tests do, and a fixture that does it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from imgcls.runs.run import Run

SMALL = [
    "data=imagefolder",
    "model.name=test_resnet",
    "model.pretrained=false",
    "data.image_size=24",
    "data.resize=24",
    "data.batch_size=16",
    "trainer.max_epochs=3",
    "trainer.accelerator=cpu",
    "export.onnx=false",
    "report=false",
]
"""The overrides of a training of a second, on a folder of images: `data.root` is left to the test."""

DIGITS = ["data=digits", "model.name=test_resnet", "export.onnx=false", "debug=off", "trainer.accelerator=cpu"]
"""The same on images that every machine has."""

Fit = Callable[..., "Run"]


@pytest.fixture
def fit(tmp_path: Path, pictures: Path) -> Fit:
    """Fit the small training on `pictures` with further overrides, in the folder `name`."""
    import imgcls

    def run(*overrides: str, name: str = "run") -> Run:
        return imgcls.fit(imgcls.compose([*SMALL, f"data.root={pictures}", f"run_dir={tmp_path / name}", *overrides]))

    return run
