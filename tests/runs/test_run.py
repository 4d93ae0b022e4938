"""A run folder opened."""

from __future__ import annotations

import json
from pathlib import Path

from imgcls.runs.run import Run


def test_a_notebook_shows_results_with_their_intervals(tmp_path: Path) -> None:
    folder = tmp_path / "a<b>"
    folder.mkdir()
    (folder / "config.yaml").write_text("{}")
    (folder / "status.json").write_text(json.dumps({"state": "finished"}))
    metrics = {"test/accuracy": 0.9, "test/accuracy_low": 0.85, "test/accuracy_high": 0.9375, "val/accuracy": 0.5}
    (folder / "metrics.json").write_text(json.dumps(metrics))
    shown = Run(folder)._repr_html_()
    assert "<td>90.00% (85.00% to 93.75%)</td>" in shown
    assert "<th>val accuracy</th><td>50.00%</td>" in shown
    assert "<td>finished</td>" in shown
    assert "a&lt;b&gt;" in shown
    assert "report" not in shown
