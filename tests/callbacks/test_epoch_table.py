"""What a training prints of each epoch."""

from __future__ import annotations

import pytest

from imgcls.callbacks.epoch_table import EpochTable, epoch_printer
from imgcls.callbacks.history import Row


def row(epoch: int, **values: float) -> Row:
    metrics = {"train/loss": 1.5, "val/loss": 0.8, "val/accuracy": 0.7, "val/macro_f1": 0.65, **values}
    return {"epoch": epoch, "step": 20 * epoch, "lr": 1e-3, **metrics, "seconds": 4.608}


def test_rows_are_aligned_and_the_best_epochs_marked() -> None:
    table, rows, lines = EpochTable("val/accuracy", "max", 12), [], []
    for epoch, accuracy in enumerate((0.5, 0.75, 0.75, float("nan"), 1.0), start=1):
        rows.append(row(epoch, **{"val/accuracy": accuracy}))
        lines += table.lines(rows)
    assert lines[:2] == [
        "    epoch       lr  train loss  val loss  val accuracy  macro F1     time",
        "*    1/12  1.0e-03      1.5000    0.8000        50.00%    0.6500    4.6 s",
    ]
    assert [line[0] for line in lines[1:]] == ["*", "*", " ", " ", "*"]
    assert {len(line) for line in lines} == {len(lines[0])}
    assert len(lines[0]) <= 80


def test_the_monitored_metric_has_a_column_and_an_epoch_without_it_is_no_best_one() -> None:
    table = EpochTable("val/ece", "min", None)
    titles, first = table.lines([row(1, **{"val/ece": 0.25})])
    assert titles.split()[-2:] == ["ece", "time"]
    assert first.split() == ["*", "1", "1.0e-03", "1.5000", "0.8000", "70.00%", "0.6500", "0.2500", "4.6", "s"]
    without = {name: value for name, value in row(2).items() if not name.startswith("val/")}
    [second] = table.lines([row(1, **{"val/ece": 0.25}), without])
    assert second.split() == ["2", "1.0e-03", "1.5000", "-", "-", "-", "-", "4.6", "s"]
    [third] = table.lines([row(1, **{"val/ece": 0.25}), row(3, **{"val/ece": 0.125})])
    assert third.startswith("*")


def test_images_with_several_labels_have_no_column_of_accuracies() -> None:
    values = {name: value for name, value in row(1, **{"val/map": 0.9}).items() if name != "val/accuracy"}
    titles, _ = EpochTable("val/map", "max", 3).lines([values])
    assert titles.split()[2:] == ["train", "loss", "val", "loss", "macro", "F1", "val", "map", "time"]


def test_a_solved_head_is_no_epoch() -> None:
    [_, line] = EpochTable("val/accuracy", "max", 0).lines([row(1)])
    assert line.split()[:3] == ["*", "solved", "-"]


def test_programs_get_a_line_of_names_and_values(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    epoch_printer("val/accuracy", "max", 3)([row(1)])
    assert capsys.readouterr().out.startswith("imgcls epoch=1 lr=0.001 train/loss=1.5 ")
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.setenv("NO_COLOR", "1")
    epoch_printer("val/accuracy", "max", 3)([row(1)])
    assert capsys.readouterr().out.splitlines()[1].startswith("*     1/3  1.0e-03")
    monkeypatch.delenv("NO_COLOR")
    epoch_printer("val/accuracy", "max", 3)([row(1)])
    assert capsys.readouterr().out.splitlines()[1].startswith("\033[1m*     1/3")


def test_a_notebook_shows_a_table_that_grows(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[str] = []
    monkeypatch.setattr("imgcls.callbacks.epoch_table.in_notebook", lambda: True)
    monkeypatch.setattr("imgcls.system.notebook.LiveHtml.show", lambda self, content: shown.append(content))
    show, rows = epoch_printer("val/accuracy", "max", 3), []
    for epoch, accuracy in enumerate((0.5, 0.75, 0.25), start=1):
        rows.append(row(epoch, **{"val/accuracy": accuracy}))
        show(rows)
    assert [content.count("<tr") for content in shown] == [2, 3, 4]
    assert "<th>val accuracy</th>" in shown[2]
    bold = [line for line in shown[2].split("<tr") if "bold" in line]
    assert len(bold) == 1
    assert "<td>2/3</td>" in bold[0]
    assert "<td>75.00%</td>" in bold[0]
