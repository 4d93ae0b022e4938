from __future__ import annotations

import errno
from pathlib import Path

import pytest

from imgcls.errors import UserError
from imgcls.runs.provenance import differences
from imgcls.runs.reading import read_status
from imgcls.runs.recording import Recording
from imgcls.system.interrupts import Interrupted

CONFIG = {"run_dir": "x", "optim": {"lr": 0.1}, "data": {"root": "a", "batch_size": 4}, "trainer": {"devices": 1}}


def test_the_status_says_how_a_run_ended(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="boom"), Recording(tmp_path / "failed", CONFIG):
        raise ValueError("boom\nsecond line")
    assert read_status(tmp_path / "failed")["state"] == "failed"
    assert read_status(tmp_path / "failed")["reason"] == "boom"
    with pytest.raises(Interrupted), Recording(tmp_path / "stopped", CONFIG):
        raise Interrupted(15)
    assert read_status(tmp_path / "stopped")["state"] == "interrupted"


def test_the_status_is_right_where_no_file_can_be_created(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def touch(self: Path, *_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    def fill_the_disk() -> None:
        monkeypatch.setattr(Path, "touch", touch)
        raise UserError("first")

    with pytest.raises(UserError, match="first"), Recording(tmp_path, CONFIG):
        fill_the_disk()
    status = read_status(tmp_path)
    assert (status["state"], status["reason"], status["resumed"]) == ("failed", "first", 0)
    assert not list(tmp_path.glob(".*.tmp"))


def test_a_second_writer_is_refused(tmp_path: Path) -> None:
    with (
        Recording(tmp_path, CONFIG),
        pytest.raises(UserError, match="Another process"),
        Recording(tmp_path, CONFIG),
    ):
        pass


def test_another_configuration_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    with Recording(tmp_path, CONFIG):
        pass
    before = (tmp_path / "config.yaml").read_text()
    other = {**CONFIG, "optim": {"lr": 0.2}}
    with pytest.raises(UserError, match=r"optim.lr was 0.1, is now 0.2"), Recording(tmp_path, other):
        pass
    assert (tmp_path / "config.yaml").read_text() == before


def test_a_run_may_move_to_another_machine(tmp_path: Path) -> None:
    with Recording(tmp_path, CONFIG):
        pass
    moved = {**CONFIG, "run_dir": "y", "data": {"root": "b", "batch_size": 4}, "trainer": {"devices": 2}}
    with Recording(tmp_path, moved) as recording:
        assert recording.status["resumed"] == 1


def test_resume_never_refuses_a_folder_that_holds_a_run(tmp_path: Path) -> None:
    with Recording(tmp_path, CONFIG, resume="never"):
        pass
    with pytest.raises(UserError, match="already holds a run"), Recording(tmp_path, CONFIG, resume="never"):
        pass


def test_differences_are_named_with_dots() -> None:
    assert differences({"a": {"b": 1, "c": [1]}}, {"a": {"b": 1, "c": [2]}, "d": 3}) == [
        ("a.c", [1], [2]),
        ("d", None, 3),
    ]
