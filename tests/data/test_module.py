from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from imgcls.data.augment import Augment
from imgcls.data.crops import PaddedCrop, RandomResizedCrop
from imgcls.data.module import Batch, ImageDataModule
from imgcls.data.sources import Source, Split


def split(count: int, offset: int = 0, size: int = 8) -> Split:
    pixels = np.random.default_rng(offset).integers(0, 256, (count, size, size, 3), dtype=np.uint8)
    return Split(tuple(f"{offset + i:05}" for i in range(count)), np.arange(count) % 3, pixels)


class Noise(ImageDataModule):
    """Pictures of noise, in memory."""

    def __init__(self, count: int = 20, **options: Any) -> None:
        super().__init__(**{"batch_size": 4, "image_size": 8, "resize": 8, **options})
        self.count = count

    def find(self) -> Source:
        return Source(("a", "b", "c"), split(self.count), split(7, 100), split(5, 200))


class Recorder(L.LightningModule):
    """A model that writes down what it is given."""

    def __init__(self, save_at: int | None = None, folder: Path | None = None) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)
        self.save_at, self.folder = save_at, folder
        self.seen: dict[int, list[list[int]]] = {}
        self.images: dict[tuple[int, int], Tensor] = {}
        self.evaluated: list[int] = []

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        assert type(batch) is Batch
        self.seen.setdefault(self.current_epoch, []).append(batch.index.tolist())
        for index, image in zip(batch.index.tolist(), batch.images, strict=True):
            self.images[self.current_epoch, index] = image.clone()
        labels = batch.labels if batch.labels.ndim == 1 else batch.labels.argmax(1)
        return nn.functional.cross_entropy(self.linear(batch.images.mean((2, 3))), labels)

    def on_train_batch_end(self, *args: Any) -> None:
        steps = self.trainer.global_step
        if self.folder is not None and steps == self.save_at and not (self.folder / "middle.ckpt").exists():
            self.trainer.save_checkpoint(self.folder / "middle.ckpt")

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self.evaluated += batch.index.tolist()

    test_step = validation_step

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def trainer(tmp_path: Path, epochs: int = 3, **options: Any) -> L.Trainer:
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "barebones": False}
    return L.Trainer(
        default_root_dir=tmp_path,
        max_epochs=epochs,
        accelerator="cpu",
        enable_model_summary=False,
        use_distributed_sampler=False,
        **{**quiet, **options},
    )


def test_every_epoch_is_another_permutation(tmp_path: Path) -> None:
    model = Recorder()
    trainer(tmp_path).fit(model, datamodule=Noise())
    orders = [[index for batch in batches for index in batch] for batches in model.seen.values()]
    assert len(orders) == 3
    assert all(sorted(order) == list(range(20)) for order in orders)
    assert orders[0] != orders[1] != orders[2]
    assert model.evaluated == list(range(7)) * 4  # once before training, to check that it works


def test_resumes_in_the_middle_of_an_epoch_as_if_it_had_never_stopped(tmp_path: Path) -> None:
    options = {"augment": Augment(crop=PaddedCrop(), flip=0.5)}
    whole = Recorder(save_at=7, folder=tmp_path)  # 5 batches an epoch: the second batch of the second epoch
    trainer(tmp_path).fit(whole, datamodule=Noise(**options))

    rest = Recorder()
    trainer(tmp_path).fit(rest, datamodule=Noise(**options), ckpt_path=tmp_path / "middle.ckpt")
    assert rest.seen == {1: whole.seen[1][2:], 2: whole.seen[2]}
    assert all(torch.equal(image, whole.images[key]) for key, image in rest.images.items())
    assert all(torch.equal(a, b) for a, b in zip(rest.parameters(), whole.parameters(), strict=True))


@pytest.mark.parametrize("save_at", [5, 10])
def test_resumes_from_a_checkpoint_of_the_last_batch_of_an_epoch(tmp_path: Path, save_at: int) -> None:
    whole = Recorder(save_at=save_at, folder=tmp_path)
    trainer(tmp_path).fit(whole, datamodule=Noise())
    rest = Recorder()
    trainer(tmp_path).fit(rest, datamodule=Noise(), ckpt_path=tmp_path / "middle.ckpt")
    assert rest.seen == {epoch: whole.seen[epoch] for epoch in range(save_at // 5, 3)}


class SaveIn(L.Callback):
    """Saves a checkpoint in a hook of the second epoch."""

    def __init__(self, hook: str, file: Path) -> None:
        def save(trainer: L.Trainer, *args: Any) -> None:
            if trainer.current_epoch == 1:
                trainer.save_checkpoint(file)

        setattr(self, hook, save)


@pytest.mark.parametrize("hook", ["on_validation_end", "on_train_epoch_end"])
def test_resumes_from_checkpoints_saved_at_the_end_of_an_epoch(tmp_path: Path, hook: str) -> None:
    whole = Recorder()
    trainer(tmp_path, callbacks=[SaveIn(hook, tmp_path / "hook.ckpt")]).fit(whole, datamodule=Noise())
    rest = Recorder()
    trainer(tmp_path).fit(rest, datamodule=Noise(), ckpt_path=tmp_path / "hook.ckpt")
    assert rest.seen == {2: whole.seen[2]}


def test_resumes_between_accumulated_steps(tmp_path: Path) -> None:
    def run(model: Recorder, **options: Any) -> Recorder:
        datamodule = Noise(batch_size=8, micro_batch_size=3)
        trainer(tmp_path, accumulate_grad_batches=datamodule.accumulation).fit(model, datamodule=datamodule, **options)
        return model

    whole = run(Recorder(save_at=3, folder=tmp_path))
    assert [len(batch) for batch in whole.seen[0]] == [2, 3, 3, 2, 3, 3]
    rest = run(Recorder(), ckpt_path=tmp_path / "middle.ckpt")
    assert rest.seen[2] == whole.seen[2]
    assert rest.seen[1] == whole.seen[1][3:]


def test_alone_in_a_notebook_batches_come_out_finished() -> None:
    datamodule = Noise(augment=Augment(crop=RandomResizedCrop(), flip=0.5))
    datamodule.prepare_data()
    datamodule.setup("fit")
    batch = next(iter(datamodule.train_dataloader()))
    assert type(batch) is Batch
    assert batch.images.shape == (4, 3, 8, 8)
    assert batch.images.dtype == torch.float32
    assert batch.labels.tolist() == (batch.index % 3).tolist()


def test_batches_are_finished_too_where_lightning_is_given_the_loader_alone(tmp_path: Path) -> None:
    datamodule = Noise(augment=Augment(flip=0.5))
    alone, together = Recorder(), Recorder()
    trainer(tmp_path).fit(alone, datamodule.train_dataloader())
    trainer(tmp_path).fit(together, datamodule=Noise(augment=Augment(flip=0.5)))
    assert alone.seen == together.seen
    assert all(torch.equal(image, together.images[key]) for key, image in alone.images.items())


def test_after_training_the_loaders_serve_a_notebook_again(tmp_path: Path) -> None:
    datamodule = Noise()
    trainer(tmp_path, epochs=1).fit(Recorder(), datamodule=datamodule)
    assert type(next(iter(datamodule.train_dataloader()))) is Batch


def test_evaluation_pixels_are_those_of_the_portable_model() -> None:
    datamodule = Noise(image_size=6, resize=7)
    datamodule.setup("test")
    batch = next(iter(datamodule.test_dataloader()))
    preprocessing = datamodule.preprocessing
    pixels = np.stack([preprocessing.pixels(Image.fromarray(p)) for p in datamodule.source.test.pictures[:4]])
    assert np.array_equal(batch.images.numpy(), preprocessing.normalise(pixels))


def test_the_seed_decides_order_and_augmentation() -> None:
    def first(seed: int) -> Batch:
        return next(iter(Noise(seed=seed, augment=Augment(crop=PaddedCrop(), flip=0.5)).train_dataloader()))

    assert torch.equal(first(1).images, first(1).images)
    assert first(1).index.tolist() != first(2).index.tolist()
