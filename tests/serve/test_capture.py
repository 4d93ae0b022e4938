"""The server keeps answered requests for the monitor, within its bounds, and counts what it has answered."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from imgcls.errors import UserError
from imgcls.monitoring.captured import read_captured
from imgcls.portable import PortableModel
from imgcls.serve.capture import Capture
from imgcls.serve.payloads import Array, Encoded
from imgcls.serve.refusals import Refusal
from tests.inputs.images import encoded
from tests.serve.conftest import picture, serving

JPEG = encoded(picture(0), "JPEG")


def test_the_monitor_reads_what_the_server_has_answered(model: PortableModel, tmp_path: Path) -> None:
    pytest.importorskip("fastapi")
    folder = tmp_path / "captured"
    with serving(model, application={"capture": Capture(folder)}) as server:
        server.post(JPEG, "image/jpeg")
        assert server.post(b"no image", "image/jpeg").status == 400
        tensor = np.zeros((40, 48, 3), np.uint8).tolist()
        answer = server.post(json.dumps({"instances": [tensor]}).encode(), "application/json")
        metrics = server.ask("GET", "/metrics").body.decode()
    first, second = read_captured(folder, model.preprocessing.depth)
    assert first == Encoded(JPEG)
    assert isinstance(second, Array)
    assert second.values.shape == (40, 48, 3)
    best = answer.json["predictions"][0]["classes"][0]["class"]
    counts = {
        line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in metrics.splitlines() if line[0] != "#"
    }
    assert counts[f'imgcls_predicted_total{{class="{best}"}}'] >= 1
    assert sum(count for name, count in counts.items() if name.startswith("imgcls_predicted_total")) == 2
    assert counts["imgcls_confidence_count"] == 2


def test_the_oldest_requests_make_room(tmp_path: Path) -> None:
    folder = tmp_path / "captured"
    capture = Capture(folder, max_bytes=30_000)
    for number in range(100):
        capture.add(f"{number:04}".encode() * 250, "image/jpeg", b"{}", "application/json")
    capture.close()
    sizes = [file.stat().st_size for file in folder.glob("*.jsonl")]
    assert 15_000 < sum(sizes) <= 30_000
    kept = [item.content[:4] for item in read_captured(folder, None) if isinstance(item, Encoded)]  # type: ignore[arg-type]
    assert kept == [f"{number:04}".encode() for number in range(100 - len(kept), 100)]
    again = Capture(folder, max_bytes=1000)  # of a server that may keep less
    again.add(b"x", "image/jpeg", b"{}", "application/json")
    again.close()
    assert sum(file.stat().st_size for file in folder.glob("*.jsonl")) <= 1000


def test_some_of_the_requests(tmp_path: Path) -> None:
    capture = Capture(tmp_path / "captured", percent=20)
    for _ in range(500):
        capture.add(b"x", "image/jpeg", b"{}", "application/json")
    capture.close()
    lines = sum(file.read_bytes().count(b"\n") for file in (tmp_path / "captured").glob("*.jsonl"))
    assert 50 < lines < 150


def test_a_folder_that_cannot_be_written_to_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="capture="):
        Capture(tmp_path / "file")


def test_requests_in_the_format_of_sagemaker(tmp_path: Path) -> None:
    """JSON is kept as text where the endpoint says so, and a line that is being written is left for the next time."""
    request = {"observedContentType": "application/json", "mode": "INPUT", "data": '{"url": 1}', "encoding": "JSON"}
    line = json.dumps({"captureData": {"endpointInput": request}, "eventVersion": "0"}) + "\n"
    file = tmp_path / "endpoint" / "one" / "2026" / "11" / "29" / "12" / "00-00-1.jsonl"
    file.parent.mkdir(parents=True)
    file.write_text(line + line[:40])
    [item] = read_captured(tmp_path, None)  # type: ignore[arg-type]
    assert isinstance(item, Refusal)
    file.write_text("{}\n")
    with pytest.raises(UserError, match="line 1: this is no captured request"):
        list(read_captured(tmp_path, None))  # type: ignore[arg-type]
    with pytest.raises(UserError, match="no such folder"):
        list(read_captured(tmp_path / "none", None))  # type: ignore[arg-type]
