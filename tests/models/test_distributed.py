"""Two processes on the CPU compute the same numbers as one."""

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import Checkpoint

from imgcls.models.ema import WeightAveraging
from imgcls.models.optim import SGD
from tests.processes import Forked

from .helpers import Loader, classifier, pictures, trainer

BATCH, STEPS, COUNT = 7, 3, 21


class Shares(L.LightningDataModule):
    """Batches of 7 images, split unevenly between the processes; each evaluates every second image."""

    def __init__(self, world_size: int) -> None:
        super().__init__()
        self.world_size, self.expected_micro_batch = world_size, BATCH / world_size

    @property
    def rank(self) -> int:
        assert self.trainer is not None
        return self.trainer.global_rank

    def train_dataloader(self) -> Loader:
        images, labels = pictures(COUNT)
        starts = range(0, COUNT, BATCH)
        mine = [torch.arange(start, start + BATCH).tensor_split(self.world_size)[self.rank] for start in starts]
        index = torch.cat(mine)
        return Loader(images[index], labels[index], [len(part) for part in mine])

    def val_dataloader(self) -> Loader:
        images, labels = pictures(COUNT)
        index = torch.arange(self.rank, COUNT, self.world_size)
        return Loader(images[index], labels[index], [len(part) for part in index.split(4)])

    def test_dataloader(self) -> Any:
        images, labels = pictures(COUNT)
        index = torch.arange(self.rank, COUNT, self.world_size)
        return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(images[index], labels[index]), batch_size=4)


class Save(Checkpoint):
    """Saves the results of the first process."""

    def __init__(self, file: Path) -> None:
        self.file, self.rows = file, []  # type: ignore[var-annotated]

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        if trainer.global_step == 2:
            trainer.save_checkpoint(self.file.with_name("middle.ckpt"))

    def on_train_epoch_end(self, trainer: L.Trainer, *args: Any) -> None:
        self.rows.append({name: value.item() for name, value in trainer.callback_metrics.items()})

    def on_test_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        if trainer.is_global_zero:
            outputs, state = vars(pl_module.test_outputs), pl_module.state_dict()
            metrics = {name: value.item() for name, value in trainer.callback_metrics.items()}
            torch.save({"rows": self.rows, "test": metrics, "outputs": outputs, "state": state}, self.file)


def run(file: Path, world_size: int, **options: Any) -> dict[str, Any]:
    module = classifier("test_vit", optim=SGD(lr=0.05, schedule="cosine"), **options)
    forked = Forked(find_unused_parameters=module.needs_find_unused_parameters)
    strategy = {"strategy": forked, "devices": world_size} if world_size > 1 else {"devices": 1}
    file.parent.mkdir()
    callbacks = [WeightAveraging(0.9), Save(file)]
    quiet, datamodule = trainer(2, callbacks, **strategy), Shares(world_size)
    quiet.fit(module, datamodule=datamodule)
    quiet.test(module, datamodule=datamodule, verbose=False)
    return {**torch.load(file), "middle": torch.load(file.with_name("middle.ckpt"), weights_only=True)}


@pytest.mark.parametrize("options", [{}, {"freeze": "head_first"}, {"freeze": "backbone"}], ids=str)
def test_two_processes_compute_the_numbers_of_one(options: dict[str, Any], tmp_path: Path) -> None:
    one, two = run(tmp_path / "one/results.pt", 1, **options), run(tmp_path / "two/results.pt", 2, **options)
    # each `fit` and `test` forks new processes, and the rows stay in those of the training
    for name, value in one["test"].items():
        assert two["test"][name] == pytest.approx(value, rel=1e-4), name
    for name, value in one["state"].items():
        assert torch.allclose(two["state"][name], value, atol=1e-5), name
    assert torch.equal(two["outputs"]["index"], torch.arange(COUNT))
    assert torch.equal(two["outputs"]["labels"], one["outputs"]["labels"])
    assert torch.allclose(two["outputs"]["logits"], one["outputs"]["logits"], atol=1e-4)
    assert torch.allclose(two["middle"]["train_totals"], one["middle"]["train_totals"], rtol=1e-5)
