"""Corrections are kept as a table that a training reads."""

from __future__ import annotations

from collections import namedtuple
from pathlib import Path

import pytest

from imgcls.data.table import Table
from imgcls.errors import UserError
from imgcls.portable import PortableModel
from imgcls.serve import feedback
from imgcls.serve.feedback import Feedback
from imgcls.serve.refusals import Refusal
from tests.inputs.images import encoded
from tests.serve.conftest import picture, serving

IMAGES = [encoded(picture(seed), kind) for seed, kind in enumerate(("PNG", "JPEG", "PNG", "PNG"))]


def test_corrections_are_a_data_set(tmp_path: Path) -> None:
    kept = Feedback(tmp_path / "kept")
    for image, label in zip(IMAGES, ("cat", "=dog", "cat", "=dog"), strict=True):
        kept.add(image, [label], "Eule")
    Feedback(tmp_path / "kept").add(IMAGES[0], ["=dog"])  # after a restart, the last one counts
    source = Table(root=tmp_path / "kept", table=tmp_path / "kept" / "labels.csv").find()
    labels = {}
    for split in (source.train, source.test):
        for name, label in zip(split.names, split.labels, strict=True):
            labels[(tmp_path / "kept" / name).read_bytes()] = source.class_names[label]
    assert labels == dict(zip(IMAGES, ("=dog", "=dog", "cat", "=dog"), strict=True))


@pytest.mark.parametrize(
    ("content", "label", "message"),
    [(b"hello", "cat", "not an image"), (IMAGES[0], " ", "printable"), (IMAGES[0], "a\nb", "printable")],
)
def test_what_is_no_correction_is_refused(content: bytes, label: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(Refusal, match=message):
        Feedback(tmp_path).add(content, [label])
    assert not [*tmp_path.rglob("*.*")]


def test_a_folder_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"feedback=.*file: File exists\."):
        Feedback(tmp_path / "file")


def test_there_is_an_end_to_what_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = Feedback(tmp_path)
    monkeypatch.setattr(feedback, "MAX_IMAGES", 2)
    assert [kept.add(image, ["cat"]) for image in IMAGES[:2]] == [1, 2]
    assert kept.add(IMAGES[0], ["dog"]) == 2
    with pytest.raises(Refusal, match="no room"):
        kept.add(IMAGES[2], ["cat"])
    monkeypatch.setattr(feedback, "MAX_IMAGES", 9)
    monkeypatch.setattr("shutil.disk_usage", lambda path: namedtuple("Usage", "free")(10**8))
    with pytest.raises(Refusal, match="no room"):
        kept.add(IMAGES[2], ["cat"])


def test_a_correction_over_http(model: PortableModel, tmp_path: Path) -> None:
    pytest.importorskip("fastapi")
    kept = Feedback(tmp_path)
    with serving(model, application={"feedback": kept}) as server:
        path = "/feedback?label=cat&label=dog&predicted=Eule"
        answer = server.ask("POST", path, IMAGES[0], Content_Type="image/png")
        assert (answer.status, answer.json) == (201, {"images": 1})
        assert "cat;dog,Eule," in (tmp_path / "labels.csv").read_text()
        assert server.ask("POST", path, IMAGES[0], Content_Type="text/plain").status == 415
        assert server.ask("POST", path, b"hello", Content_Type="image/png").status == 400
        assert server.ask("GET", "/page").json["feedback"]
    with serving(model) as server:
        assert server.ask("POST", path, IMAGES[0], Content_Type="image/png").status == 404
