"""The files of a cross-validation, which is a run folder with a run of each fold in `folds/`."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from imgcls.runs.reading import read_table
from imgcls.system.files import atomic_write_text
from imgcls.system.tables import aligned, as_csv

FOLDS, SUMMARY, OUT_OF_FOLD = "folds", "cross_validation.csv", "out_of_fold.csv"
SHARES = ("accuracy", "accuracy_top5", "map", "subset_accuracy")
BOUNDS = ("_low", "_high")


@dataclass(frozen=True)
class Spread:
    """A metric over the folds."""

    name: str
    values: tuple[float, ...]
    """Of each fold, in order."""

    @property
    def mean(self) -> float:
        """The mean."""
        return statistics.fmean(self.values)

    @property
    def deviation(self) -> float:
        """The standard deviation of the sample; 0 for a single fold."""
        return statistics.stdev(self.values) if len(self.values) > 1 else 0.0

    @property
    def text(self) -> str:
        """Mean ± standard deviation, of shares in percent.

        >>> Spread("test/accuracy", (0.9, 0.92)).text, Spread("test/loss", (0.5, 0.7)).text
        ('91.00 ± 1.41 %', '0.6000 ± 0.1414')
        """
        if self.name.rpartition("/")[2] in SHARES:
            return f"{100 * self.mean:.2f} ± {100 * self.deviation:.2f} %"
        return f"{self.mean:.4f} ± {self.deviation:.4f}" if abs(self.mean) < 100 else f"{self.mean:.4g}"


def spreads(metrics: Sequence[Mapping[str, float]]) -> list[Spread]:
    """The metrics that all folds have, from the `metrics.json` of each; ends of intervals are left out."""
    common = [name for name in metrics[0] if all(name in other for other in metrics) and not name.endswith(BOUNDS)]
    return [Spread(name, tuple(float(values[name]) for values in metrics)) for name in common]


def write_summary(folder: Path, found: Sequence[Spread]) -> None:
    """Write `cross_validation.csv`: a row per metric with its mean, its standard deviation, and a column per fold."""
    rows = [
        {"metric": spread.name, "mean": spread.mean, "sd": spread.deviation}
        | {f"fold_{number}": value for number, value in enumerate(spread.values, start=1)}
        for spread in found
    ]
    atomic_write_text(folder / SUMMARY, as_csv(rows))


def read_summary(folder: Path) -> list[Spread]:
    """What `write_summary` wrote; empty for a run that is no cross-validation."""
    return [
        Spread(row["metric"], tuple(float(value) for name, value in row.items() if name.startswith("fold_")))
        for row in read_table(folder / SUMMARY)
    ]


def summary_table(found: Sequence[Spread]) -> str:
    """The metrics of validation and test as an aligned table, a line each."""
    shown = [spread for spread in found if spread.name.startswith(("val/", "test/"))]
    return aligned(
        [
            {"metric": spread.name, "mean ± sd": spread.text}
            | {f"fold {number}": f"{value:.4f}" for number, value in enumerate(spread.values, start=1)}
            for spread in shown
        ]
    )
