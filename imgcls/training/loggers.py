"""Lightning's loggers, each able to log a figure; a logger is imported only if a run uses it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    from lightning.pytorch.loggers import Logger


@runtime_checkable
class FigureLogger(Protocol):
    """A logger that shows figures."""

    def log_figure(self, name: str, file: Path) -> None:
        """Log the PNG `file` as `name`."""


def log_figures(logger: Logger | None, folder: Path) -> None:
    """Log the figures of the report in `folder`/figures, if `logger` supports figures."""
    if isinstance(logger, FigureLogger):
        for file in sorted((folder / "figures").glob("*.png")):
            logger.log_figure(file.stem, file)


def TensorBoard(save_dir: str) -> Logger:  # noqa: N802 - named like a class in the configuration
    """Events in `save_dir`/tensorboard."""
    from lightning.pytorch.loggers import TensorBoardLogger

    class WithFigures(TensorBoardLogger):
        def log_figure(self, name: str, file: Path) -> None:
            import numpy as np
            from PIL import Image

            pixels = np.asarray(Image.open(file).convert("RGB"))
            self.experiment.add_image(f"figures/{name}", pixels, dataformats="HWC")
            self.experiment.flush()

    return WithFigures(save_dir=save_dir, name="tensorboard", version="", default_hp_metric=False)


def MLflow(**options: Any) -> Logger:  # noqa: N802
    """Lightning's MLFlowLogger with `options`; figures are artifacts.

    With an SQLite database and no `artifact_location`, artifacts are stored in `mlflow_artifacts` beside the database;
    MLflow itself would put them into the current folder.
    """
    from lightning.pytorch.loggers import MLFlowLogger

    scheme, _, file = str(options.get("tracking_uri") or "").partition(":///")
    if scheme == "sqlite" and file and options.get("artifact_location") is None:
        folder = Path(file).resolve().parent / "mlflow_artifacts"
        options = {**options, "artifact_location": folder.as_uri()}

    class WithFigures(MLFlowLogger):
        def log_figure(self, name: str, file: Path) -> None:
            self.experiment.log_artifact(self.run_id, str(file), artifact_path="figures")

    return WithFigures(**options)


def WeightsAndBiases(**options: Any) -> Logger:  # noqa: N802
    """Lightning's WandbLogger with `options`."""
    from lightning.pytorch.loggers import WandbLogger

    class WithFigures(WandbLogger):
        def log_figure(self, name: str, file: Path) -> None:
            self.log_image(f"figures/{name}", [str(file)])

    return WithFigures(**options)
