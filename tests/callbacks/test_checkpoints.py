from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from imgcls.callbacks.checkpoints import Checkpoints


@pytest.mark.parametrize(("mode", "best"), [("max", [2, 1]), ("min", [3, 0])])
def test_the_best_epochs_come_first_the_later_of_equal_ones(tmp_path: Path, mode: str, best: list[int]) -> None:
    checkpoints = Checkpoints(tmp_path, mode=mode, top_k=2)
    values = [0.1, 0.9, 0.9, 0.1, float("nan")]
    assert [epoch for _, epoch in sorted(zip(values, range(5), strict=True), key=checkpoints._rank)][:2] == best


@pytest.mark.parametrize(("rest", "processes"), [(0, 1), (60, 1), (60, 2)])
def test_short_epochs_write_nothing_and_keep_the_best_weights_in_memory(
    tmp_path: Path, rest: float, processes: int
) -> None:
    written: list[tuple[str, int, int]] = []  # (file, epoch of its weights, epoch of the writing)

    def write(content: dict[str, int], file: Path) -> None:
        written.append((file.name, content["epoch"], trainer.current_epoch))
        file.touch()

    def dump(weights_only: bool = False) -> dict[str, int]:
        return {"epoch": trainer.current_epoch}

    strategy = SimpleNamespace(reduce_boolean_decision=lambda decision, **_: decision, save_checkpoint=write)
    trainer: Any = SimpleNamespace(
        should_stop=False,
        max_epochs=6,
        world_size=processes,
        save_checkpoint=lambda file, weights_only=False: write(dump(), file),
        strategy=strategy,
        _checkpoint_connector=SimpleNamespace(dump_checkpoint=dump),
    )
    checkpoints = Checkpoints(tmp_path, rest_seconds=rest)
    for epoch, value in enumerate([0.1, 0.5, 0.4, 0.6, 0.3, 0.2]):
        trainer.current_epoch, trainer.callback_metrics = epoch, {"val/accuracy": value}
        checkpoints._validated = True
        checkpoints.on_train_epoch_end(trainer, None)  # type: ignore[arg-type]
    checkpoints.on_train_end(trainer, None)  # type: ignore[arg-type]
    if rest and processes == 1:
        assert written == [("best.ckpt", 0, 0), ("last.ckpt", 0, 0), ("best.ckpt", 3, 5), ("last.ckpt", 5, 5)]
    else:
        assert [epoch for name, epoch, _ in written if name == "best.ckpt"] == [0, 1, 3]
        assert [epoch for name, epoch, _ in written if name == "last.ckpt"] == [0, 1, 2, 3, 4, 5]
        assert all(epoch == at for _, epoch, at in written)
