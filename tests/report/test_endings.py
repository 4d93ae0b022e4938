"""Every run gets a report, however it ends; and what the command does with run folders."""

from __future__ import annotations

import contextlib
import json
import re
from pathlib import Path
from typing import Any

import pytest

from imgcls.callbacks.checkpoints import Checkpoints
from imgcls.cli import guarded
from imgcls.debug.sampler import Sample, write_samples
from imgcls.errors import UserError
from imgcls.report.__main__ import report
from imgcls.runs.run import load
from imgcls.system.interrupts import Interrupted
from tests.report.test_report import run_folder
from tests.trainings import Fit

REPORTED = ("debug.profile=false", "report=true")


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (RuntimeError("a bug"), "The run failed: a bug."),
        (Interrupted(15), "was interrupted: stopped by SIGTERM"),
    ],
    ids=["failed", "interrupted"],
)
def test_a_run_that_does_not_finish_has_a_page(
    error: Exception, text: str, tmp_path: Path, fit: Fit, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: Checkpoints, trainer: Any, *args: Any) -> None:
        if trainer.global_step == 6:
            raise error

    monkeypatch.setattr(Checkpoints, "on_train_batch_end", fail)
    with pytest.raises(type(error)):
        fit(*REPORTED)
    run = load(tmp_path / "run")
    page = run.report_file.read_text()
    assert text in page
    assert "after 1 epoch is" in page
    assert "training loss per step" in page
    assert "The last " in page
    assert (run.folder / "figures" / "curves.png").is_file()
    assert json.loads((run.folder / "debug" / "rules.json").read_text())


def test_a_run_of_one_epoch_reports_its_duplicates(fit: Fit, pictures: Path) -> None:
    twin = pictures / "train" / "cat" / "000.png"
    (pictures / "test" / "dog" / "twin.png").write_bytes(twin.read_bytes())
    (pictures / "test" / "dog" / "empty.png").touch()
    run = fit(*REPORTED, "trainer.max_epochs=1")
    written = {file.stem for file in (run.folder / "report_data").iterdir()}
    assert {"counts", "duplicates", "pictures", "augmented", "gradcam"} <= written
    page = run.report_file.read_text()
    data = page.partition('id="data"')[2].partition('id="rules"')[0]
    assert "in two splits" in data
    assert "test/dog/twin.png" in data
    assert "One file was left out" in data
    assert "empty.png" in data
    assert len(re.findall("data:image/jpeg", data)) == 12
    counts = json.loads((run.folder / "report_data" / "counts.json").read_text())
    assert sum(map(sum, counts["splits"].values())) == 3 * 24 + 3 * 8 + 1
    explained = json.loads((run.folder / "report_data" / "gradcam.json").read_text())
    assert explained.get("reason") or len(explained["pictures"]) == 8
    inline = run.report()
    assert repr(inline) == str(run.report_file)
    assert inline._repr_html_().startswith('<iframe srcdoc="&lt;!doctype html&gt;')


def test_the_command_creates_a_report_again_and_compares(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("first", "second"):
        run_folder(tmp_path / name, ["a", "b"])
    report(["run=first"])
    assert capsys.readouterr().out.strip() == str(Path("first") / "report.html")
    report(["run=first", "run=second", "output=both.html"])
    assert "2 runs compared" in (tmp_path / "both.html").read_text()
    for arguments, message in {
        ("run=first", "output=x.html"): "several runs to compare",
        ("run=first", "run=second", "debug.rules.Overfit.patience=2"): "one run at a time",
        ("run=first", "trial=second"): "Give the folder to report on",
        (): "Give the folder to report on",
        ("run=first", "more"): "Unexpected argument 'more'",
        ("run=first", "debug.rules.Overfit.patience=2"): "debug=off",
        ("profile=first",): "no profiler output",
    }.items():
        with pytest.raises(UserError, match=message):
            report(arguments)
    assert guarded(lambda: report(["run=nowhere"])) == 2


def test_a_sagemaker_jobs_profile_has_a_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    samples = [Sample(1_600_000_000.0 + n, cpu=(99.0, 5.0), gpu=(3.0,), gpu_memory=(4.0,)) for n in range(1200)]
    write_samples(tmp_path / "job", samples)
    report([f"profile={tmp_path / 'job'}", f"output={tmp_path / 'page.html'}"])
    page = (tmp_path / "page.html").read_text()
    assert "1200 samples of the machine. Issues found by LowGPUUtilization, CPUBottleneck, BatchSize." in page
    assert "CPUBottleneck              IssuesFound" in capsys.readouterr().out
    assert not (tmp_path / "job" / "profile.json").exists(), "files of others are not changed"
    override = "debug.profile_rules.CPUBottleneck.cpu_threshold=100"
    report([f"profile={tmp_path / 'job'}", override, f"output={tmp_path / 'page.html'}"])
    assert "CPUBottleneck              NoIssuesFound" in capsys.readouterr().out


def test_long_lists_and_many_classes_are_bounded(tmp_path: Path) -> None:
    from imgcls.callbacks.history import as_csv
    from imgcls.report.page import write_report

    names = [f"class {n}" for n in range(600)]
    folder = run_folder(tmp_path / "run", names)
    (folder / "bad_files.csv").write_text(as_csv([{"path": f"{n}.jpg", "reason": "empty"} for n in range(5000)]))
    page = write_report(folder).read_text()
    assert "5,000 files were left out" in page
    assert "and 4980 more in bad_files.csv" in page
    assert "4999.jpg" not in page
    assert "150 classes with the most errors" in page
    assert len(page) < 1_000_000


@pytest.mark.parametrize("fails", [False, True])
def test_a_report_that_was_disabled_is_created_on_request(
    tmp_path: Path, fit: Fit, monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    if fails:
        monkeypatch.setattr("imgcls.training.pipeline.run_test", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError) if fails else contextlib.nullcontext():
        fit(*REPORTED, "trainer.max_epochs=1", "report=false")
    run = load(tmp_path / "run")
    assert not run.report_file.exists()
    assert not (run.folder / "figures").exists()
    assert ("run failed" in run.report()._repr_html_()) is fails
    assert run.report_file.is_file()
