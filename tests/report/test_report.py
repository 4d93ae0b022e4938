from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from imgcls.callbacks.history import as_csv
from imgcls.models.backbones import create_network
from imgcls.portable.calibration import calibrate
from imgcls.report.comparison import write_comparison
from imgcls.report.gradcam import heat_maps
from imgcls.report.page import write_report


def run_folder(folder: Path, names: list[str], tested: bool = True) -> Path:
    """A small finished run: of each class one image classified correctly and one assigned to the next class."""
    folder.mkdir()
    (folder / "config.yaml").write_text("seed: 0\n")
    (folder / "status.json").write_text(json.dumps({"state": "finished", "reason": None}))
    rows = [{"epoch": n, "lr": 0.1, "train/loss": 1 - n / 5, "val/loss": 1.0, "val/accuracy": 0.25} for n in range(3)]
    (folder / "metrics.csv").write_text(as_csv(rows))
    metrics = {"val/accuracy": 0.25, "images_per_second": 10.0}
    if tested:
        metrics["test/accuracy"] = 0.5
        count = len(names)
        confusion = [[int(column in (row, (row + 1) % count)) for column in range(count)] for row in range(count)]
        table = [
            {"label": name, **dict(zip(names, row, strict=True))} for name, row in zip(names, confusion, strict=True)
        ]
        (folder / "confusion.csv").write_text(as_csv(table))
        (folder / "per_class.csv").write_text(as_csv([{"class": n, "pictures": 2, "accuracy": 0.5} for n in names]))
        predictions = [
            {"file": f"{name}/{right}.jpg", "label": name, "predicted": names[(at + 1 - right) % count],
             "correct": right, "confidence": 0.6, "loss": 2.5 - 2 * right}
            for at, name in enumerate(names) for right in (0, 1)
        ]  # fmt: skip
        (folder / "predictions.csv").write_text(as_csv(predictions))
    (folder / "metrics.json").write_text(json.dumps(metrics))
    return folder


@pytest.mark.parametrize("count", [3, 40])
def test_a_reader_finds_the_result_and_the_errors(tmp_path: Path, count: int) -> None:
    names = ["<b>&quot;", "Café", *(f"class {n}" for n in range(count - 2))]
    folder = run_folder(tmp_path / "run", names)
    page = write_report(folder).read_text()
    assert f"The test accuracy is 50.00%, on {2 * count} images of {count} classes." in page
    assert "<b>" not in page
    assert "Café" in page
    assert "Café/0.jpg" in page
    wrong = page.partition('id="misclassified-images"')[2].partition("</section>")[0]
    assert "Café/0.jpg" in wrong
    assert "Café/1.jpg" not in wrong
    assert (folder / "figures" / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert (folder / "figures" / "confusion.png").read_bytes().startswith(b"\x89PNG")


def test_the_page_stands_alone(tmp_path: Path) -> None:
    page = write_report(run_folder(tmp_path / "run", ["a", "b"])).read_text()
    assert not re.search(r"""(?:src|href)=["'](?!data:|#)""", page)
    assert "http" not in page


def test_a_run_without_test_pictures_has_a_report(tmp_path: Path) -> None:
    page = write_report(run_folder(tmp_path / "run", ["a", "b"], tested=False)).read_text()
    assert "The validation accuracy is 25.00%" in page
    assert 'id="confusion-matrix"' not in page


def test_a_section_that_fails_is_a_sentence(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = run_folder(tmp_path / "run", ["a", "b"])
    (folder / "confusion.csv").write_text("label,a\na,much\n")
    page = write_report(folder).read_text()
    assert "This section could not be created: ValueError" in page
    assert "'Classes'" in caplog.text
    assert "'Confusion matrix'" in caplog.text
    assert "50.00%, on 4 images" in page


def test_findings_of_rules_and_profile_are_shown(tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "run", ["a", "b"])
    fired = {"rule": "Overfit", "status": "IssuesFound", "sentence": "It overfits.", "advice": "Stop.", "steps": [7]}
    silent = {"rule": "AllZero", "status": "NoIssuesFound", "sentence": "", "advice": "", "steps": [], "layers": []}
    (folder / "debug" / "profile").mkdir(parents=True)
    (folder / "debug" / "rules.json").write_text(json.dumps([{**fired, "layers": ["fc.weight"]}, silent]))
    profile = {
        "summary": {"training": {"seconds": 2.0, "share": 1.0}},
        "system": [{"name": "CPU", "unit": "%", "max": 99, "p99": 98, "p95": 97, "p50": 50, "min": 1}],
        "steps": {"parts": {"data_wait": {"seconds": 0.1, "share": 0.41}}},
        "rules": [],
    }
    (folder / "debug" / "profile" / "profile.json").write_text(json.dumps(profile))
    (folder / "debug" / "profile" / "facts.json").write_text(json.dumps({"gpus": ["A fast one", "A fast one"]}))
    (folder / "environment.json").write_text(json.dumps({"python": "3.12.1", "git": {"commit": "abc"}}))
    page = write_report(folder).read_text()
    for text in (
        "A fast one, A fast one",
        "3.12.1",
        "commit: abc",
        "It overfits.",
        "Stop.",
        "Steps 7.",
        "fc.weight",
        "No issues found by AllZero",
        "41%",
        "CPU, %",
    ):
        assert text in page, text


def test_a_comparison_shows_what_differs(tmp_path: Path) -> None:
    first, second = (run_folder(tmp_path / name, ["a", "b"]) for name in ("first", "second"))
    (second / "config.yaml").write_text("seed: 1\ntest: false\n")
    (second / "metrics.json").write_text(json.dumps({"val/accuracy": 0.75}))
    page = write_comparison([first, second], tmp_path / "both.html").read_text()
    assert "second is best, with a validation accuracy of 75.00%" in page
    assert "<td>seed</td><td>0</td><td>1</td>" in page


def compare(tmp_path: Path, **runs: tuple[str, float, float, str]) -> str:
    """The sentence about runs by name: config.yaml, validation and test accuracy, and the validation split."""
    for name, (config, val, test, split) in runs.items():
        folder = run_folder(tmp_path / name, ["a", "b"])
        (folder / "config.yaml").write_text(config)
        (folder / "metrics.json").write_text(json.dumps({"val/accuracy": val, "test/accuracy": test}))
        (folder / "data.json").write_text(json.dumps({"splits": {"val": [9, split], "test": [9, "t"]}}))
    page = write_comparison([tmp_path / name for name in runs], tmp_path / "all.html").read_text()
    found = re.search(r'<p class="sentence">(.*)</p>', page)
    assert found
    return found[1]


def test_seeds_are_summed_up_and_not_ranked(tmp_path: Path) -> None:
    sentence = compare(
        tmp_path,
        s0=("seed: 0\ndata: {order_seed: 0}", 0.90, 0.86, "x"),
        s1=("seed: 1\ndata: {order_seed: 1}", 0.91, 0.85, "x"),
        s2=("seed: 2\ndata: {order_seed: 2}", 0.92, 0.81, "x"),
    )
    assert sentence == (
        "3 seeds of one configuration: test accuracy 84.00% ± 2.65%, validation accuracy 91.00% ± 1.00% "
        "(mean ± standard deviation)."
    )


def test_runs_with_different_validation_images_are_not_ranked_by_them(tmp_path: Path) -> None:
    sentence = compare(tmp_path, a=("optim: {lr: 1}", 0.9, 0.86, "x"), b=("optim: {lr: 2}", 0.95, 0.81, "y"))
    assert "best" not in sentence
    assert "validated on different images" in sentence
    assert "test images, which are the same: a 86.00%, b 81.00%" in sentence


def test_the_best_in_validation_is_not_passed_off_as_the_best_in_the_test(tmp_path: Path) -> None:
    sentence = compare(tmp_path, a=("optim: {lr: 1}", 0.9, 0.86, "x"), b=("optim: {lr: 2}", 0.95, 0.81, "x"))
    assert sentence == (
        "b is best, with a validation accuracy of 95.00%; its test accuracy is 81.00%, that of a 86.00%."
    )


def test_the_speed_of_a_short_training_is_no_headline(tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "run", ["a", "b"])
    metrics = json.loads((folder / "metrics.json").read_text())
    for seconds, shown in ((5, False), (500, True)):
        speed = {"data_wait_fraction": 0.26, "training_seconds": seconds}
        (folder / "metrics.json").write_text(json.dumps({**metrics, **speed}))
        page = write_report(folder).read_text()
        assert ("time waiting for data" in page) == ("images per second" in page) == shown


def test_the_curve_of_the_learning_rate_finder_is_drawn_with_its_choice(tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "run", ["a", "b"])
    assert "Learning-rate finder" not in write_report(folder).read_text()
    found = {"lr": [1e-4, 1e-3, 1e-2, 1e-1], "loss": [2.0, 1.5, 1.0, 3.0], "suggestion": 4.2e-3}
    (folder / "learning_rate.json").write_text(json.dumps(found))
    page = write_report(folder).read_text()
    section = page.partition('id="learning-rate-finder"')[2].partition("<section>")[0]
    assert "optim.lr=auto chose 0.0042" in section
    assert "chosen: 0.0042" in section
    assert (folder / "figures" / "learning_rate.png").is_file()


def test_a_result_has_its_interval_and_a_difference_its_doubt(tmp_path: Path) -> None:
    labels = np.arange(200) % 2
    for name, wrong in (("a", 20), ("b", 24)):
        folder = run_folder(tmp_path / name, ["a", "b"])
        (folder / "data.json").write_text(json.dumps({"splits": {"val": [9, "v"], "test": [200, "t"]}}))
        logits = 4.0 * np.eye(2)[labels]
        logits[:wrong] *= -1
        np.save(folder / "test_logits.npy", logits)
        np.save(folder / "test_labels.npy", labels)
    page = write_report(tmp_path / "a").read_text()
    assert re.search(r"test accuracy is 50.00% \(95 % interval \d+\.\d\d% to 9\d\.\d\d%\), on", page)
    page = write_comparison([tmp_path / "a", tmp_path / "b"], tmp_path / "both.html").read_text()
    assert "b is -2.00 points from a in test accuracy" in page
    assert "p = 0.12: the difference may be chance" in page
    np.save(tmp_path / "b" / "test_labels.npy", 1 - labels)
    page = write_comparison([tmp_path / "a", tmp_path / "b"], tmp_path / "both.html").read_text()
    assert "points from" not in page, "the images are not the same"


def test_the_calibration_is_that_of_the_exported_model(tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "run", ["a", "b"])
    metrics = json.loads((folder / "metrics.json").read_text())
    (folder / "metrics.json").write_text(json.dumps({**metrics, "test/ece": 0.4}))
    labels, logits = np.array([0, 0, 1, 1] * 50), np.zeros((200, 2), dtype=np.float32)
    logits[np.arange(200), labels] = 4.0
    logits[::10] *= -1
    np.save(folder / "test_logits.npy", logits)
    np.save(folder / "test_labels.npy", labels)
    fitted = calibrate(logits, labels, (logits, labels))
    (folder / "model").mkdir()
    (folder / "model" / "model.json").write_text(
        json.dumps({"calibration": replace(fitted, interval=(0.01, 0.2)).as_dict()})
    )
    page = write_report(folder).read_text()
    section = page.partition('id="calibration"')[2].partition("<section>")[0]
    error = fitted.effect["test"][1].ece
    assert f"is {error:.4f} (95 % interval 0.0100 to 0.2000), on 200 test images." in section
    assert f"divides its logits by {fitted.temperature:.3g}, which was fitted on 200 validation images" in section
    assert f"<dd>{error:.4g}" in page.partition("<nav")[0]
    assert re.search(r"0\.01\d* to 0\.2", page.partition("<nav")[0])
    (folder / "model" / "model.json").write_text("{}")
    assert "exported without a temperature" in write_report(folder).read_text()


def test_heat_is_where_the_class_is() -> None:
    class Backbone(nn.Module):
        def forward_features(self, images: torch.Tensor) -> torch.Tensor:
            return nn.functional.avg_pool2d(images, 4)

        def forward_head(self, features: torch.Tensor) -> torch.Tensor:
            return features.mean(dim=(2, 3))

    network = nn.Module()
    network.backbone, network.head = Backbone(), nn.Linear(3, 2, bias=False)
    network.head.weight.data = torch.tensor([[1.0, 0, 0], [0, 1.0, 0]])
    images = torch.zeros(1, 3, 16, 16)
    images[:, 0, :4, :4] = images[:, 1, 12:, 12:] = 1
    for label, pixel in ((0, (1, 1)), (1, (14, 14))):
        heat = heat_maps(network, images, torch.tensor([label]))
        assert isinstance(heat, torch.Tensor)
        assert heat[0][pixel] == 1
        assert heat[0][15 - pixel[0], 15 - pixel[1]] == 0


def test_images_that_shrink_to_a_point_are_explained_by_an_earlier_map() -> None:
    network = create_network("resnet18", 3, pretrained=False)
    network.freeze(True)
    torch.manual_seed(0)
    heat = heat_maps(network, torch.randn(2, 3, 32, 32), torch.tensor([0, 2]))
    assert isinstance(heat, torch.Tensor)
    assert heat.shape == (2, 32, 32)
    assert heat.isfinite().all()
    assert 0 <= heat.min() <= heat.max() <= 1
    vit = create_network("test_vit", 3, pretrained=False)
    assert "convolutional" in str(heat_maps(vit, torch.randn(1, 3, 160, 160), torch.tensor([0])))
