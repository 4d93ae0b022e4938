"""Checkpoints written in a thread hold the state at the time of the call, in order, and no error is lost."""

from __future__ import annotations

import pickle
import threading
from collections import OrderedDict, namedtuple
from pathlib import Path
from typing import Any

import pytest
import torch

from imgcls.errors import UserError
from imgcls.training.checkpoint_io import AtomicCheckpointIO, BackgroundCheckpointIO, copy_to_host, read_checkpoint


@pytest.fixture
def may_write(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """An event that every checkpoint waits for before it is written."""
    go = threading.Event()
    original = AtomicCheckpointIO.save_checkpoint

    def write_later(self: AtomicCheckpointIO, *args: Any, **options: Any) -> None:
        assert go.wait(10)
        original(self, *args, **options)

    monkeypatch.setattr(AtomicCheckpointIO, "save_checkpoint", write_later)
    return go


def test_a_checkpoint_holds_the_state_at_the_time_of_the_call(may_write: threading.Event, tmp_path: Path) -> None:
    io, weight = BackgroundCheckpointIO(), torch.zeros(3)
    state = {
        "state_dict": OrderedDict(weight=weight),
        "epoch": 1,
        "states": [{"step": torch.tensor(1.0)}],
        "shape": (2, 3),
    }
    io.save_checkpoint(state, tmp_path / "last.ckpt")
    weight += 1  # the next step
    assert not (tmp_path / "last.ckpt").exists()
    may_write.set()
    io.teardown()
    checkpoint = read_checkpoint(tmp_path / "last.ckpt")
    assert torch.equal(checkpoint["state_dict"]["weight"], torch.zeros(3))
    assert (checkpoint["epoch"], checkpoint["shape"], checkpoint["states"][0]["step"]) == (1, (2, 3), torch.tensor(1.0))
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("imgcls-checkpoint")]


def test_the_next_checkpoint_and_a_reader_wait(may_write: threading.Event, tmp_path: Path) -> None:
    io = BackgroundCheckpointIO()
    io.save_checkpoint({"epoch": 1}, tmp_path / "last.ckpt")
    threading.Timer(0.05, may_write.set).start()
    io.save_checkpoint({"epoch": 2}, tmp_path / "last.ckpt")
    assert io.load_checkpoint(tmp_path / "last.ckpt") == {"epoch": 2}
    io.teardown()


def test_an_error_is_raised_once_by_the_next_call(tmp_path: Path) -> None:
    io = BackgroundCheckpointIO()
    (tmp_path / "file").touch()
    io.save_checkpoint({"epoch": 1}, tmp_path / "file" / "last.ckpt")
    with pytest.raises((OSError, UserError)):
        io.wait()
    io.save_checkpoint({"epoch": 2}, tmp_path / "last.ckpt")
    io.save_checkpoint({"epoch": 3}, tmp_path / "file" / "last.ckpt")
    with pytest.raises((OSError, UserError)):
        io.teardown()
    assert read_checkpoint(tmp_path / "last.ckpt") == {"epoch": 2}


def test_copies_keep_the_kinds_of_containers() -> None:
    copied = copy_to_host(OrderedDict(a=[torch.ones(1), (torch.ones(2), "x")], b=None))
    assert type(copied) is OrderedDict
    assert type(copied["a"][1]) is tuple
    assert copied["b"] is None


def test_a_full_disk_is_one_line_and_the_last_checkpoint_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    io, file = AtomicCheckpointIO(), tmp_path / "last.ckpt"
    io.save_checkpoint({"step": 1}, file)

    def full(_: Any, target: Path) -> None:
        target.write_bytes(b"half of it")
        raise RuntimeError("[enforce fail at inline_container.cc:671] . unexpected pos 128 vs 24")

    monkeypatch.setattr(torch, "save", full)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage(100, 100, 0))
    with pytest.raises(UserError, match="disk is full"):
        io.save_checkpoint({"step": 2}, file)
    assert read_checkpoint(file) == {"step": 1}
    assert list(tmp_path.iterdir()) == [file]
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage(10**12, 0, 10**12))
    with pytest.raises(RuntimeError, match="unexpected pos"):
        io.save_checkpoint({"step": 2}, file)


class Malicious:
    def __reduce__(self) -> Any:
        return print, ("executed",)


def test_a_checkpoint_is_never_executed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "x.ckpt").write_bytes(pickle.dumps(Malicious()))
    torch.save({"state": Malicious()}, tmp_path / "y.ckpt")
    for name in ("x.ckpt", "y.ckpt"):
        with pytest.raises(UserError, match="cannot be read as a checkpoint"):
            read_checkpoint(tmp_path / name)
    assert "executed" not in capsys.readouterr().out
