"""Lightning's loggers, each able to log a figure; their packages are imported only if a run uses them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch.loggers import MLFlowLogger, TensorBoardLogger, WandbLogger
from PIL import Image


def log_figures(logger: Any, folder: Path) -> None:
    """Log the figures of the report in `folder`/figures, if `logger` can log figures."""
    if hasattr(logger, "log_figure"):
        for file in sorted((folder / "figures").glob("*.png")):
            logger.log_figure(file.stem, file)


class TensorBoard(TensorBoardLogger):
    """Events in `save_dir`/tensorboard."""

    def __init__(self, save_dir: str) -> None:
        super().__init__(save_dir=save_dir, name="tensorboard", version="", default_hp_metric=False)

    def log_figure(self, name: str, file: Path) -> None:
        pixels = np.asarray(Image.open(file).convert("RGB"))
        self.experiment.add_image(f"figures/{name}", pixels, dataformats="HWC")
        self.experiment.flush()


class MLflow(MLFlowLogger):
    """Lightning's MLFlowLogger with `options`; figures are artifacts.

    With an SQLite database and no `artifact_location`, artifacts are stored in `mlflow_artifacts` beside the database;
    MLflow itself would put them into the current folder.
    """

    def __init__(self, **options: Any) -> None:
        scheme, _, file = str(options.get("tracking_uri") or "").partition(":///")
        if scheme == "sqlite" and file and options.get("artifact_location") is None:
            folder = Path(file).resolve().parent / "mlflow_artifacts"
            options = {**options, "artifact_location": folder.as_uri()}
        super().__init__(**options)

    def log_figure(self, name: str, file: Path) -> None:
        self.experiment.log_artifact(self.run_id, str(file), artifact_path="figures")


class WeightsAndBiases(WandbLogger):
    """Lightning's WandbLogger; figures are images."""

    def log_figure(self, name: str, file: Path) -> None:
        self.log_image(f"figures/{name}", [str(file)])
