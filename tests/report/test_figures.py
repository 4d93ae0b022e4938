from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from imgcls.report.figures import (
    DPI,
    INK,
    Chart,
    confusion_matrix,
    learning_curves,
    precision_recall,
    risk_coverage,
)


@pytest.mark.parametrize(("first", "scale"), [(3.0, "linear"), (70.0, "log"), (float("nan"), "linear")])
def test_one_bad_epoch_does_not_flatten_the_others(first: float, scale: str) -> None:
    history = [{"epoch": n, "train/loss": 1 / (n + 1), "val/loss": first if n == 0 else 1.0} for n in range(6)]
    chart = learning_curves({"run": history})
    [loss, rate] = [canvas.figure.axes[0] for canvas in chart._canvases]
    assert (loss.get_yscale(), rate.get_yscale()) == (scale, "linear")


def test_losses_that_cannot_be_compared_are_not_drawn_over_each_other() -> None:
    history = [{"epoch": n, "train/loss": 1.5, "val/loss": 1.0, "train/accuracy": 1, "val/accuracy": 1} for n in (0, 1)]

    def panels(objective: str) -> dict[str, int]:
        canvases = learning_curves({"run": history}, objective=objective)._canvases
        return {canvas.figure.axes[0].get_title(): len(canvas.figure.axes[0].get_lines()) for canvas in canvases}

    rate = {"learning rate after the epoch": 0}
    assert panels("") == {"loss": 2, "accuracy": 2, **rate}
    assert panels("focal") == {"training loss, focal": 1, "validation loss, cross entropy": 1, "accuracy": 2, **rate}


def test_a_file_holds_all_panels_and_the_page_each_one() -> None:
    def line(height: float):  # type: ignore[no-untyped-def]
        return lambda axes: axes.plot([0, 1], [height, height], color="#ff0000", linewidth=9)

    chart = Chart("Two lines", (line(1.0), line(2.0)), size=(3.0, 2.0))
    pixels = np.asarray(Image.open(io.BytesIO(chart.as_png())))
    assert pixels.shape == (2 * DPI, 6 * DPI, 3)
    red = (pixels == (255, 0, 0)).all(-1)
    assert red[:, : 3 * DPI].any()
    assert red[:, 3 * DPI :].any()
    sizes = [Image.open(io.BytesIO(Chart("", (line(1.0),) * n, (3.0, 2.0)).as_png())).size for n in (1, 3, 4, 5)]
    assert sizes == [(3 * DPI, 2 * DPI), (9 * DPI, 2 * DPI), (6 * DPI, 4 * DPI), (9 * DPI, 4 * DPI)]
    first, second = chart.as_svgs()
    assert "Two lines" in first
    assert "Two lines" not in second
    assert chart.as_svgs() == [first, second], "drawing again changes nothing"
    assert (np.asarray(Image.open(io.BytesIO(chart.as_png()))) == pixels).all(), "nor does the page change the file"


def test_dollar_signs_in_names_are_drawn_as_they_are() -> None:
    names = ["US$ ^$", "a$b", "$x$_ \\frac"]
    chart = confusion_matrix(np.eye(3, dtype=int), names)
    assert chart.as_png()
    assert all(chart.as_svgs()[0].count(f">{name}<") == 2 for name in names)
    history = [{"epoch": 0, "lr": 0.1, "train/loss": 1.0, "val/loss": 1.0}]
    curves = learning_curves({"run $^$": history, "$\\frac": history})
    assert ">run $^$<" in curves.as_svgs()[0]


def test_a_log_axis_within_a_decade_has_small_numbers_in_the_colour_of_the_page() -> None:
    history = [{"epoch": n, "val/loss": value} for n, value in enumerate([2.2, 0.5, 0.2, 0.18, 0.17, 0.16])]
    chart = learning_curves({"run": history})
    axes = chart._canvases[0].figure.axes[0]
    shown = [tick.label1 for tick in axes.yaxis.get_minor_ticks() if tick.label1.get_text()]
    assert shown
    assert {(label.get_color(), label.get_fontsize()) for label in shown} == {(INK, 8)}


def test_a_training_without_a_finite_loss_says_so() -> None:
    history = [{"epoch": n, "train/loss": np.nan, "val/loss": np.nan, "lr": 0.1} for n in range(2)]
    loss, rate = learning_curves({"run": history}).as_svgs()
    assert ">not finite<" in loss
    assert ">not finite<" not in rate


@pytest.mark.parametrize("name", ["cat", "a label with a name that is far too long for its figure"])
def test_the_title_of_a_curve_takes_no_width_from_it(name: str) -> None:
    values = np.linspace(0, 1, 5)
    [canvas] = precision_recall(name, values, 1 - values, None, 0.5)._canvases
    [axes] = canvas.figure.axes
    title = axes.title.get_window_extent()
    assert 0 <= title.x0 <= title.x1 <= canvas.figure.bbox.width
    assert axes.bbox.width > 0.7 * canvas.figure.bbox.width


def test_accuracies_are_drawn_up_to_100_percent() -> None:
    for risk in (np.zeros(9), np.linspace(0, 0.5, 9)):
        [canvas] = risk_coverage(np.linspace(0.1, 1, 9), risk)._canvases
        assert canvas.figure.axes[0].get_ylim() == (min(99, 100 * (1 - risk[-1])), 100)


HISTORY = [{"epoch": n, "lr": 1e-5, "train/loss": 10.0 ** (3 - n), "val/loss": 1e4 * n + 1.0} for n in range(5)]
RECALL = np.linspace(0, 1, 9)
CHARTS = {
    "a matrix": (confusion_matrix(np.eye(2, dtype=int), ["one", "two"]), 0.5),
    "long names": (confusion_matrix(np.eye(12, dtype=int), [f"{n} bullterriers" for n in range(12)]), 0.5),
    "longest names": (confusion_matrix(np.eye(2, dtype=int), ["Staffordshire bullterr"] * 2), 0.2),
    "large and small numbers": (learning_curves({"run": HISTORY}, objective="label smoothing 0.1"), 0.7),
    "a long title": (precision_recall("a label with a very long name", RECALL, 1 - RECALL, (0.5, 0.5), 0.5), 0.6),
}


@pytest.mark.parametrize("kind", CHARTS)
def test_a_panel_fills_its_figure_and_no_text_is_cut_off(kind: str) -> None:
    chart, share = CHARTS[kind]
    for canvas in chart._canvases:
        [axes] = canvas.figure.axes
        room, content = canvas.figure.bbox, axes.get_tightbbox()
        assert content.x0 >= 0
        assert content.y0 >= 0
        assert content.x1 <= room.width
        assert content.y1 <= room.height
        assert max(content.width / room.width, content.height / room.height) > 0.9
        assert min(axes.bbox.width / room.width, axes.bbox.height / room.height) > share
