"""A run folder: its metrics, its predictions, and its model applied to new images."""

from __future__ import annotations

import html
import shlex
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imgcls.aws.s3 import is_remote
from imgcls.errors import UserError
from imgcls.images.decoding import as_list
from imgcls.models.hub import fetch_model, is_on_hub
from imgcls.runs.confusion import read_confusion
from imgcls.runs.folds import FOLDS, OUT_OF_FOLD, SUMMARY, read_summary, summary_table
from imgcls.runs.provenance import read_configuration
from imgcls.runs.reading import class_names, read_history, read_metrics, read_predictions, read_status
from imgcls.system.text import duration

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from omegaconf import DictConfig

    from imgcls.portable import PortableModel


class Run:
    """One run folder.

    Args:
        folder: the folder that a training wrote.

    Raises:
        UserError: the folder is not a run folder.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder).expanduser()
        if not self.folder.is_dir():
            raise UserError(f"run={folder}: no such folder.")
        if not (self.folder / "config.yaml").is_file():
            raise UserError(f"run={folder}: this folder holds no run (it has no config.yaml).{self._nearby()}")

    def __repr__(self) -> str:
        return f"Run({str(self.folder)!r}, {self.status.get('state', 'unknown')})"

    def _repr_html_(self) -> str:
        """What a notebook shows: the state, the results with their intervals, and where they are."""
        facts = {"run": str(self.folder), "state": self.status.get("state", "unknown")}
        metrics = self.metrics
        for name in ("test/accuracy", "test/accuracy_top5", "test/macro_f1", "test/map", "val/accuracy", "val/map"):
            if name in metrics:
                low, high = metrics.get(f"{name}_low"), metrics.get(f"{name}_high")
                interval = f" ({low:.2%} to {high:.2%})" if low is not None and high is not None else ""
                facts[name.replace("/", " ")] = f"{metrics[name]:.2%}{interval}"
        if self.report_file.is_file():
            facts["report"] = str(self.report_file)
        rows = "".join(
            f"<tr><th>{html.escape(name)}</th><td>{html.escape(text)}</td></tr>" for name, text in facts.items()
        )
        return f"<table>{rows}</table>"

    @property
    def status(self) -> dict[str, Any]:
        """State (`running`, `finished`, `failed`, `interrupted`), reason and times."""
        return read_status(self.folder)

    @property
    def metrics(self) -> dict[str, Any]:
        """The final metrics; empty before the run has finished."""
        return read_metrics(self.folder)

    @property
    def history(self) -> list[dict[str, float]]:
        """One row per epoch."""
        return read_history(self.folder)

    @property
    def predictions(self) -> list[dict[str, str]]:
        """One row per test image: file, label, predicted, correct, confidence, loss, the five most likely classes."""
        return read_predictions(self.folder)

    @property
    def config(self) -> DictConfig:
        """The resolved configuration of the run, in which `${…}` is plain text."""
        from omegaconf import OmegaConf

        from imgcls.config.trust import literal

        return OmegaConf.create(literal(read_configuration(self.folder)))

    @property
    def report_file(self) -> Path:
        """Path of the report."""
        return self.folder / "report.html"

    def report(self) -> Page:
        """The report, created if it does not exist; a notebook shows it inline."""
        if not self.report_file.is_file():
            from imgcls.report.page import write_report

            write_report(self.folder)
        return Page(self.report_file)

    def profiler_reports(self) -> list[Page]:
        """The pages of SageMaker's profiler, if SageMaker Debugger has watched the job."""
        return [Page(file) for file in sorted((self.folder / "debug" / "sagemaker").rglob("*.html"))]

    @cached_property
    def model(self) -> PortableModel:
        """The portable model: preprocessing, network and class names in one object."""
        from imgcls import portable

        return portable.load(self.model_folder)

    @property
    def model_folder(self) -> Path:
        """Folder of the portable model. Raises UserError before the run has one."""
        folder = self.folder / "model"
        if not (folder / "model.json").is_file():
            if (self.folder / SUMMARY).is_file():
                raise UserError(
                    f"{self.folder} is a cross-validation without a model of its own. Name a fold, such as "
                    f"run={self.folder / FOLDS / '1'}, or train it with cv.ensemble=true."
                )
            state = self.status.get("state", "not finished")
            raise UserError(
                f"{self.folder} holds no model yet (the run is {state}). Run its command again to finish it."
            )
        return folder

    @property
    def class_names(self) -> list[str]:
        """The classes, in the order of the model's outputs."""
        return list(self.model.class_names)

    def predict(self, pictures: Any, top_k: int = 5, coverage: float | None = None) -> Any:
        """The `top_k` most likely classes of each image.

        Args:
            pictures: paths, bytes, Pillow images or uint8 arrays (H, W, 3); a single one, or a sequence of them. Or a
                folder, for all images in it.
            top_k: number of classes, up to all of them.
            coverage: return the set of classes that holds the true one in this share of the cases instead; not for a
                folder.

        Returns:
            A list of `imgcls.portable.Prediction`, each a list of (name, probability) with `label`, `probability` and
            `file`. For a folder a pandas DataFrame with file, class and probability, where pandas is installed.

        Raises:
            BadPicture: an image cannot be read; those of a folder are logged and left out.
            UserError: the run has no model yet, or no sets of classes for `coverage`.
        """
        if isinstance(pictures, str | Path) and Path(pictures).expanduser().is_dir():
            from imgcls.portable import predict_folder

            if coverage is not None:
                raise UserError("coverage is for images, not for a folder.")
            return predict_folder(self.model, Path(pictures).expanduser(), top_k)
        return self.model.top(as_list(pictures), top_k, coverage)

    def top_losses(self, count: int = 9) -> list[dict[str, Any]]:
        """The test images with the largest losses, largest first: rows of `predictions`, with numbers as numbers."""
        rows = sorted(self.predictions, key=lambda row: -float(row["loss"]))[:count]
        return [
            {name: float(value) if name in ("loss", "confidence") else value for name, value in row.items()}
            | {"correct": row["correct"] == "1"}
            for row in rows
        ]

    def plot_confusion(self) -> Figure:
        """The confusion matrix of the test images, as a figure of matplotlib; of many classes those with most errors.

        Raises UserError for a run without a test, and where images have several labels.
        """
        from imgcls.report.figures import confusion_figure

        if not self.predictions:
            raise UserError(f"{self.folder} has no confusion matrix: the run has tested no images.")
        if (self.folder / "label_errors.csv").is_file():
            raise UserError(
                "A confusion matrix is for images of one label. Which labels were mistaken: label_errors.csv."
            )
        return confusion_figure(read_confusion(self.folder, class_names(self.folder)))

    def _nearby(self) -> str:
        inside = sorted(path.parent for path in self.folder.glob("*/config.yaml"))
        inside = inside or sorted(path.parent for path in self.folder.glob("*/*/config.yaml"))
        return f" Did you mean {inside[-1]}?" if inside else ""


class Page:
    """A report: prints as its path, and is displayed in a notebook."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __repr__(self) -> str:
        return str(self.file)

    def _repr_html_(self) -> str:
        content = html.escape(self.file.read_text(encoding="utf-8"), quote=True)
        return f'<iframe srcdoc="{content}" style="width: 100%; height: 40rem; border: 0"></iframe>'


def load(folder: str | Path) -> Run:
    """The run in `folder`, which may be an address s3://bucket/prefix. Raises UserError if there is none."""
    if is_remote(folder):
        from imgcls.aws.mirror import fetch_run

        folder = fetch_run(str(folder))
    return Run(folder)


def find_model(folder: str | Path) -> Path:
    """The folder of a portable model: `folder` itself, that of the run in it, or a copy of hf-hub:user/name.

    Raises UserError if there is none.
    """
    if is_on_hub(folder):
        return fetch_model(str(folder))
    if not is_remote(folder) and (Path(folder).expanduser() / "model.json").is_file():
        return Path(folder).expanduser()
    return load(folder).model_folder


def run_in(run: Run | str | Path) -> Run:
    """`run`, or the run in this folder."""
    return run if isinstance(run, Run) else load(run)


def print_summary(run: Run) -> None:
    """Print the results of a finished run in a few lines."""
    metrics = run.metrics
    if not metrics:  # a job that continues elsewhere
        print(f"run folder  {run.folder}")
        return
    labels = [
        ("test accuracy", "test/accuracy", "{:.2%}"),
        ("top-5", "test/accuracy_top5", "{:.2%}"),
        ("mean average precision", "test/map", "{:.2%}"),
        ("macro F1", "test/macro_f1", "{:.4f}"),
        ("validation accuracy", "val/accuracy", "{:.2%}"),
        ("validation map", "val/map", "{:.2%}"),
    ]
    if folds := read_summary(run.folder):
        print(f"\n{summary_table(folds)}")
    parts = []
    for label, name, pattern in (row for row in labels if row[1] in metrics):
        ends = [metrics.get(f"{name}_{end}") for end in ("low", "high")]
        bounds = "" if None in ends else f" ({' to '.join(pattern.format(end) for end in ends)})"
        parts.append(f"{label} {pattern.format(metrics[name])}{bounds}")
    print(f"\n{', '.join(parts)}")
    if "ensemble/accuracy" in metrics:
        print(f"ensemble    test accuracy {metrics['ensemble/accuracy']:.2%}, on the data set's own test images")
    epochs = int(metrics.get("epochs", 0))
    best = f" ({_weights(metrics)})" if epochs > 1 and "best_epoch" in metrics else ""
    speed = f", {metrics['images_per_second']:.0f} images/s" if "images_per_second" in metrics else ""
    length = f"{epochs} epoch{'' if epochs == 1 else 's'}{best}" if epochs else "features and the solved head"
    print(f"{length} in {duration(metrics.get('seconds', 0))}{speed if epochs else ''}")
    print(f"run folder  {run.folder}")
    if run.report_file.is_file():
        print(f"report      {run.report_file}")
    if folds and (run.folder / OUT_OF_FOLD).is_file():
        print(f"out of fold {run.folder / OUT_OF_FOLD}")
    if (run.folder / "model" / "model.json").is_file():
        folder = shlex.quote(f"run={run.folder}")
        print(f"classify    python -m imgcls predict {folder} IMAGES")
        print(f"try it      python -m imgcls serve {folder}")


def _weights(metrics: Mapping[str, float]) -> str:
    """Which weights the model has."""
    share = metrics.get("finetuned_share", 1)
    if share == 1:
        return f"the best: {int(metrics['best_epoch'])}"
    if share == 0:
        return "the best: the start"
    return f"the best: {share:.0%} of epoch {int(metrics['best_epoch'])}, {1 - share:.0%} of the start"


def checkpoint_file(run: Run, checkpoint: str) -> Path:
    """The checkpoint file for 'best', 'last' or a path."""
    if checkpoint in ("best", "last"):
        return run.folder / "checkpoints" / f"{checkpoint}.ckpt"
    return Path(checkpoint).expanduser()
