"""Checkpoints that are written in a thread: what was there when they were asked for, in order, and no fault is lost."""

from __future__ import annotations

import pickle
import threading
from collections import OrderedDict, namedtuple
from pathlib import Path
from typing import Any

import pytest
import torch

from imgcls.errors import UserError
from imgcls.training.checkpoint_io import AtomicCheckpointIO, BackgroundCheckpointIO, on_host, read_checkpoint


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Nothing is written before it is set."""
    go = threading.Event()
    original = AtomicCheckpointIO.save_checkpoint

    def later(self: AtomicCheckpointIO, *args: Any, **options: Any) -> None:
        assert go.wait(10)
        original(self, *args, **options)

    monkeypatch.setattr(AtomicCheckpointIO, "save_checkpoint", later)
    return go


def test_what_is_written_is_what_was_there_when_it_was_asked_for(held: threading.Event, tmp_path: Path) -> None:
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
    held.set()
    io.teardown()
    found = read_checkpoint(tmp_path / "last.ckpt")
    assert torch.equal(found["state_dict"]["weight"], torch.zeros(3))
    assert (found["epoch"], found["shape"], found["states"][0]["step"]) == (1, (2, 3), torch.tensor(1.0))
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("imgcls-checkpoint")]


def test_the_next_one_waits_and_a_reader_too(held: threading.Event, tmp_path: Path) -> None:
    io = BackgroundCheckpointIO()
    io.save_checkpoint({"epoch": 1}, tmp_path / "last.ckpt")
    threading.Timer(0.05, held.set).start()
    io.save_checkpoint({"epoch": 2}, tmp_path / "last.ckpt")
    assert io.load_checkpoint(tmp_path / "last.ckpt") == {"epoch": 2}
    io.teardown()


def test_a_fault_is_told_by_the_next_call_once(tmp_path: Path) -> None:
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
    copied = on_host(OrderedDict(a=[torch.ones(1), (torch.ones(2), "x")], b=None))
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
        with pytest.raises(UserError, match="no checkpoint that can be read"):
            read_checkpoint(tmp_path / name)
    assert "executed" not in capsys.readouterr().out
