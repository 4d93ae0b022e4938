"""The command: a page, a sentence and an exit code for captured requests and for folders of images."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

import imgcls
from imgcls import export, monitor
from imgcls.monitoring.perturbations import darken
from imgcls.monitoring.reference import FILE, Reference
from imgcls.serve.capture import Capture
from tests.aws_account import needs_moto
from tests.conftest import Command
from tests.digits import Digits
from tests.inputs.images import encoded
from tests.trainings import Fit


def test_what_has_drifted_and_what_has_not(
    digits: Digits,
    tmp_path: Path,
    run_command: Command,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    dice = np.random.default_rng(0)
    capture = Capture(tmp_path / "captured")
    for image in digits.images:
        capture.add(encoded(image, "PNG"), "image/png", b"{}", "application/json")
    capture.add(b'{"url": "https://example.org/a.jpg"}', "application/json", b"{}", "application/json")
    capture.close()
    assert run_command(monitor, "captured", f"run={digits.folder}") == 0
    out = capsys.readouterr().out
    assert f"No drift in {len(digits.images)} images." in out
    assert "1 images could not be read" in out

    (tmp_path / "dark").mkdir()
    for number, image in enumerate(digits.images):
        (tmp_path / "dark" / f"{number:04}.png").write_bytes(encoded(darken(image, 0.5, dice), "PNG"))
    assert run_command(monitor, "dark", f"run={digits.folder}", "output=dark.html") == 3
    printed = capsys.readouterr()
    assert "Drift was noticed after" in printed.out
    assert "brightness" in printed.out
    assert "dark.html shows how" in printed.err
    page = (tmp_path / "dark.html").read_text()
    assert "Most unusual images" in page
    assert "unknown images" in page
    assert "data:image/jpeg" in page


def test_a_model_without_a_reference(
    digits: Digits,
    tmp_path: Path,
    run_command: Command,
    capsys: pytest.CaptureFixture[str],
) -> None:
    shutil.copytree(digits.folder, tmp_path / "model", ignore=shutil.ignore_patterns(FILE))
    assert run_command(monitor, tmp_path, f"run={tmp_path / 'model'}") == 2
    assert "reference=true" in capsys.readouterr().err
    assert run_command(monitor, f"run={digits.folder}") == 2


def test_an_export_writes_the_reference(fit: Fit, tmp_path: Path, run_command: Command) -> None:
    run = fit("data.val_fraction=0.4")
    assert run_command(export, f"run={run.folder}", "reference=true", "onnx=false") == 0
    reference = Reference.load(run.model_folder / FILE)
    assert len(reference.images) == len(reference.correct) == 29
    assert reference.correct.mean() == pytest.approx(run.metrics["val/accuracy"], abs=1e-6)
    found = imgcls.monitor(run.config.data.root, run.folder, tmp_path / "monitor.html")
    assert found["images"] == 96
    assert found["drift"] == {}


@needs_moto
def test_what_an_endpoint_has_captured_is_read_from_s3(
    digits: Digits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from imgcls.launch.rehearsal.aws import LocalAws

    capture = Capture(tmp_path / "captured")
    for image in digits.images[:40]:
        capture.add(encoded(image, "PNG"), "image/png", b"{}", "application/json")
    capture.close()
    monkeypatch.setenv("IMGCLS_CACHE", str(tmp_path / "cache"))
    with LocalAws(lambda request: None, lambda name: None) as aws:
        settings = {"AWS_ENDPOINT_URL": aws.address, "AWS_DEFAULT_REGION": "us-east-1"}
        for name, value in {**settings, "AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x"}.items():
            monkeypatch.setenv(name, value)
        client = aws.session().client("s3")
        client.create_bucket(Bucket="theirs")
        place = "imgcls/captured/imgcls-digits/AllTraffic/2026/11/29/10"
        for number, file in enumerate(sorted((tmp_path / "captured").glob("*.jsonl"))):
            client.put_object(Bucket="theirs", Key=f"{place}/{number:02}-00-0.jsonl", Body=file.read_bytes())
        page = tmp_path / "monitor.html"
        found = imgcls.monitor("s3://theirs/imgcls/captured/imgcls-digits", digits.folder, page)
    assert (found["images"], found["unreadable"], found["drift"]) == (40, 0, {})
    assert page.is_file()
