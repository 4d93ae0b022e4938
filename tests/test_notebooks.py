"""The notebooks run, in a reduced form, and are kept as they came out of a whole run."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import matplotlib
import pytest

from tests.trainings import compose_with

FOLDER = Path(__file__).parent.parent / "notebooks"
NOTEBOOKS = sorted(path.stem for path in FOLDER.glob("*.ipynb"))
REDUCED = {
    "quick_start": "EPOCHS = 1",
    "your_pictures": "PICTURES, EPOCHS = 12, 1",
    "tags": "PICTURES, EPOCHS = 60, 1",
    "search_and_compare": "TRIALS, EPOCHS = 2, 1",
    "inside_a_run": "PICTURES, EPOCHS = 12, 1",
    "sagemaker": 'LAUNCH, EPOCHS = "rehearsal", 2',
}
"""What stands in the place of the cell with the tag `parameters`."""

QUICK = ["export.onnx=false", "trainer.limit_train_batches=2", "trainer.limit_test_batches=1"]
SMALLER = {
    "inside_a_run": ["data.image_size=64"],
    "search_and_compare": ["model.name=test_resnet"],
    "sagemaker": ["model.name=test_resnet"],
}


def cells(name: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((FOLDER / f"{name}.ipynb").read_text())["cells"]
    return found


def code(name: str) -> list[tuple[str, bool]]:
    """(source, whether it is the cell with the parameters) of each code cell."""
    return [
        ("".join(cell["source"]), "parameters" in cell["metadata"].get("tags", []))
        for cell in cells(name)
        if cell["cell_type"] == "code"
    ]


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_it_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    compose_with(monkeypatch, [*QUICK, *SMALLER.get(name, [])])
    matplotlib.use("Agg")
    names: dict[str, Any] = {"__name__": "__main__"}
    assert sum(reduced for _, reduced in code(name)) == 1
    for number, (source, reduced) in enumerate(code(name)):
        program = REDUCED[name] if reduced else source
        exec(compile(program, f"{name}.ipynb, code cell {number}", "exec"), names)


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_it_is_kept_as_it_ran(name: str) -> None:
    written = [cell for cell in cells(name) if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in written] == list(range(1, len(written) + 1))
    outputs = [output for cell in written for output in cell["outputs"]]
    assert not [output for output in outputs if output["output_type"] == "error"]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    text = json.dumps(outputs)
    assert not re.search(r"/(root|home|Users)/", text), "a path of the machine that it ran on"
    assert (FOLDER / f"{name}.ipynb").stat().st_size < 1_000_000
    assert cells(name)[0]["cell_type"] == "markdown"
