from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from imgcls.history import as_csv
from imgcls.report import write_report


def run_folder(folder: Path, names: list[str], tested: bool = True) -> Path:
    """A small finished run: of each class one picture that is right and one taken for the next class."""
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
    assert f"50.00% of {2 * count} test pictures of {count} classes are recognised." in page
    assert "<b>" not in page
    assert "Café" in page
    assert "Café/0.jpg" in page
    assert "Café/1.jpg" not in page.partition("Most wrong")[2]
    assert (folder / "figures" / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert (folder / "figures" / "confusion.png").is_file() == (count <= 30)


def test_the_page_stands_alone(tmp_path: Path) -> None:
    page = write_report(run_folder(tmp_path / "run", ["a", "b"])).read_text()
    assert not re.search(r"""(?:src|href)=["'](?!data:)""", page)
    assert "http" not in page


def test_a_run_without_test_pictures_has_a_report(tmp_path: Path) -> None:
    page = write_report(run_folder(tmp_path / "run", ["a", "b"], tested=False)).read_text()
    assert "25.00% of the validation pictures" in page
    assert "Confusion" not in page
