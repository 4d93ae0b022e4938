"""A plain multirun ends with a table, a page, and the means over seeds."""

from __future__ import annotations

import csv
import json
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from imgcls.runs.provenance import write_configuration
from imgcls.sweeps.members import best_first, over_seeds, read_members, sentence
from imgcls.sweeps.multirun import as_latex, as_markdown, summary, write
from tests.trainings import SMALL


def write_run(folder: Path, overrides: list[str], accuracy: float | None) -> None:
    folder.mkdir(parents=True)
    write_configuration(folder, {"checkpoint": {"monitor": "val/accuracy"}, "data": {}}, overrides)
    state = "finished" if accuracy is not None else "failed"
    (folder / "status.json").write_text(json.dumps({"state": state, "reason": "no memory" * (accuracy is None)}))
    if accuracy is not None:
        metrics = {"val/accuracy": accuracy, "test/accuracy": accuracy - 0.1, "epochs": 3, "seconds": 5.0}
        (folder / "metrics.json").write_text(json.dumps(metrics))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two models with three seeds each; model_b is better in the mean, model_a has the best single run."""
    values = {"model_a": [0.95, 0.60, 0.70], "model_b": [0.90, 0.88, 0.89]}
    runs = [(model, seed, value) for model, found in values.items() for seed, value in enumerate(found)]
    for number, (model, seed, value) in enumerate(runs):
        write_run(tmp_path / str(number), ["data=digits", f"model={model}", f"seed={seed}"], value)
    (tmp_path / "0" / "report.html").write_text("")
    return tmp_path


def test_seeds_are_summed_up_and_the_best_mean_wins(folder: Path) -> None:
    members = read_members(folder)
    assert members[0].values == {"model": "model_a", "seed": "0"}, "what all runs share is no column"
    first, second = over_seeds(members)
    deviation = statistics.stdev([95, 60, 70])
    assert first == {
        "model": "model_a",
        "seeds": 3,
        "val/accuracy": f"75.00 ± {deviation:.2f} %",
        "test/accuracy": f"65.00 ± {deviation:.2f} %",
    }
    assert second["val/accuracy"] == "89.00 ± 1.00 %"
    assert best_first(members)[0].values["model"] == "model_a"
    assert sentence(members) == "model=model_b is best: val/accuracy 89.00 ± 1.00 %, the mean of 3 seeds."


def test_a_failed_run_is_listed_and_counts_in_no_mean(folder: Path) -> None:
    write_run(folder / "6", ["data=digits", "model=model_b", "seed=3"], None)
    write_run(folder / "10", ["data=digits", "model=model_b", "seed=4"], 0.87)
    members = read_members(folder)
    write(folder, members)
    with (folder / "sweep.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["run"] for row in rows] == ["0", "1", "2", "3", "4", "5", "6", "10"], "numbers are no texts"
    assert (rows[6]["state"], rows[6]["reason"], rows[6]["val/accuracy"]) == ("failed", "no memory", "")
    assert over_seeds(members)[1]["seeds"] == 4
    page = (folder / "sweep.html").read_text()
    assert '<a href="0/report.html">0</a>' in page
    assert "no memory" in page
    assert "89.00 ± 1.00" not in page, "the fourth seed counts"
    assert "88.50 ± 1.29 %" in page
    assert "| model_b | 4 | 88.50 ± 1.29 % |" in (folder / "sweep.md").read_text()
    assert r"model\_b & 4 & 88.50 $\pm$ 1.29 \% &" in (folder / "sweep.tex").read_text()
    assert "sweep.html" in summary(folder, members)


def test_without_seeds_the_best_run_is_named(tmp_path: Path) -> None:
    for number, value in enumerate((0.5, 0.75)):
        write_run(tmp_path / str(number), [f"optim.lr={number}"], value)
    members = read_members(tmp_path)
    assert over_seeds(members) == []
    assert sentence(members) == "Run 1 is best: val/accuracy 0.75 with optim.lr=1."


def test_markup_in_values_is_escaped() -> None:
    table = [{"a|b": "50 %", "x_y": "a & b"}]
    assert as_markdown(table) == "| a\\|b | x_y |\n| --- | --- |\n| 50 % | a & b |\n"
    assert r"a|b & x\_y \\" in as_latex(table)
    assert r"50 \% & a \& b \\" in as_latex(table)


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., int]:
    """Run `python -m imgcls.train -m …` in this process; its exit code."""
    from hydra.core.global_hydra import GlobalHydra

    from imgcls.train import main

    def run(*overrides: str) -> int:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["imgcls.train", "-m", *overrides])
        GlobalHydra.instance().clear()
        with pytest.raises(SystemExit) as ended:
            main()
        return int(ended.value.code or 0)

    return run


def test_the_command_ends_with_the_table(
    command: Callable[..., int], pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / "sweep"
    options = [*SMALL, "trainer.max_epochs=1", "debug=off", f"data.root={pictures}", f"hydra.sweep.dir={place}"]
    assert command(*options, "seed=0,1") == 0
    printed = capsys.readouterr().out
    assert "the mean of 2 seeds" in printed
    members = read_members(place)
    assert [member.values for member in members] == [{"seed": "0"}, {"seed": "1"}]
    assert (place / "sweep.html").is_file()
    assert f"{len(list(csv.DictReader((place / 'sweep.csv').open())))}" == "2"
