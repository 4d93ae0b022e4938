"""Two processes share a data set: each image once per epoch, augmented the same in both, with exact metrics."""

from __future__ import annotations

from itertools import chain
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor

from imgcls.data.augment import Augment
from imgcls.data.crops import PaddedCrop
from imgcls.data.sources import Source
from imgcls.data.stores.store import ArrayStore
from imgcls.models.backbones import create_network
from imgcls.models.classifier import Classifier
from tests.processes import Forked

from .test_module import Noise, Recorder, split, trainer

EPOCHS, COUNT, BATCH = 3, 23, 6


class Few(Noise):
    """23 training images, 7 validation images and one test image, which two processes cannot share evenly."""

    def find(self) -> Source:
        return Source(("a", "b", "c"), split(self.count), split(7, 100), split(1, 200))


class Reporter(L.Callback):
    """Saves the batches of each process."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._write(trainer, pl_module, "fit")

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._write(trainer, pl_module, "test")

    def _write(self, trainer: L.Trainer, model: Any, name: str) -> None:
        datamodule: Any = trainer.datamodule  # type: ignore[attr-defined]
        stores = datamodule.opened.stores.items()
        (store,) = {id(store): store for (name, _), store in stores if name == "train"}.values()
        assert isinstance(store, ArrayStore)
        seen = {
            "seen": model.seen,
            "images": model.images,
            "evaluated": model.evaluated,
            "stored": len(store),
            "folder": str(store.folder),
        }
        torch.save(seen, self.folder / f"{name}-{trainer.global_rank}.pt")


def run(folder: Path, processes: int, task: str = "fit", **options: Any) -> list[dict[str, Any]]:
    """Train or test with several processes, and return what each of them saved."""
    folder.mkdir(parents=True)
    augment = Augment(PaddedCrop(0.25), flip=0.5)
    datamodule = Few(count=COUNT, batch_size=BATCH, augment=augment, **options)
    datamodule.setup()
    devices = {"devices": processes, "strategy": Forked()} if processes > 1 else {"devices": 1}
    quiet = trainer(folder, epochs=EPOCHS, callbacks=[Reporter(folder)], num_sanity_val_steps=0, **devices)
    getattr(quiet, task)(Recorder(), datamodule=datamodule)
    return [torch.load(folder / f"{task}-{rank}.pt", weights_only=True) for rank in range(processes)]


@pytest.mark.parametrize("options", [{}, {"store": "disk"}, {"micro_batch_size": 2}], ids=str)
def test_no_image_is_repeated_in_an_epoch_and_each_step_equals_that_of_one_process(
    options: dict[str, Any], tmp_path: Path
) -> None:
    (one,), two = run(tmp_path / "one", 1, **options), run(tmp_path / "two", 2, **options)
    steps = COUNT // BATCH
    for epoch in range(EPOCHS):
        mine, others = (_steps(part["seen"][epoch], steps) for part in two)
        whole = _steps(one["seen"][epoch], steps)
        assert [first + second for first, second in zip(mine, others, strict=True)] == whole
        assert {len(step) for step in (*mine, *others)} == {BATCH // 2}
        index = list(chain.from_iterable([*mine, *others]))
        assert len(set(index)) == len(index) == steps * BATCH
    orders = [tuple(chain.from_iterable(part["seen"][epoch])) for part in two for epoch in range(EPOCHS)]
    assert len(set(orders)) == len(orders)


def _steps(batches: list[list[int]], steps: int) -> list[list[int]]:
    parts = len(batches) // steps
    return [list(chain.from_iterable(batches[step * parts : (step + 1) * parts])) for step in range(steps)]


def test_an_image_is_augmented_the_same_in_any_process(tmp_path: Path) -> None:
    (one,), two = run(tmp_path / "one", 1), run(tmp_path / "two", 2)
    together: dict[tuple[int, int], Tensor] = {**two[0]["images"], **two[1]["images"]}
    assert together.keys() == one["images"].keys()
    assert all(torch.equal(image, one["images"][key]) for key, image in together.items())


def test_all_processes_map_the_same_store(tmp_path: Path) -> None:
    two = run(tmp_path / "two", 2, store="disk", cache=tmp_path / "cache")
    assert {part["stored"] for part in two} == {COUNT}
    (folder,) = {part["folder"] for part in two}
    assert Path(folder).is_relative_to(tmp_path / "cache")


def test_uneven_shares_are_evaluated_once_and_a_process_can_have_none(tmp_path: Path) -> None:
    two = run(tmp_path / "fit", 2)
    assert [part["evaluated"] for part in two] == [[0, 2, 4, 6] * EPOCHS, [1, 3, 5] * EPOCHS]
    tested = run(tmp_path / "test", 2, "test")
    assert [part["evaluated"] for part in tested] == [[0], []]


class Measured(L.Callback):
    """Saves the metrics of the first process."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def on_test_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        if trainer.is_global_zero:
            metrics = {name: value.item() for name, value in trainer.callback_metrics.items()}
            torch.save({"metrics": metrics, "index": pl_module.test_outputs.index}, self.file)


@pytest.mark.parametrize("split_name", ["val", "test"])
def test_metrics_of_uneven_shares_equal_those_of_one_process(split_name: str, tmp_path: Path) -> None:
    """With seven images, and with one, of which a process has none."""
    results = []
    for processes in (1, 2):
        torch.manual_seed(0)
        datamodule = Few(count=COUNT, batch_size=4, image_size=32, resize=32)
        datamodule.test_on(split_name, ("a", "b", "c"))
        devices = {"devices": processes, "strategy": Forked()} if processes > 1 else {"devices": 1}
        file = tmp_path / f"{processes}.pt"
        quiet = trainer(tmp_path, callbacks=[Measured(file)], **devices)
        quiet.test(Classifier(create_network("test_resnet", 3)), datamodule=datamodule, verbose=False)
        results.append(torch.load(file, weights_only=True))
    one, two = results
    assert one["index"].tolist() == two["index"].tolist() == list(range(7 if split_name == "val" else 1))
    assert two["metrics"] == pytest.approx(one["metrics"], abs=1e-6)
