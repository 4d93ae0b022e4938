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
from imgcls.data.batch import RawBatch
from imgcls.data.crops import PaddedCrop, RandomResizedCrop
from imgcls.data.mixing import Mixing
from imgcls.data.module import Batch, ImageDataModule
from imgcls.data.policies import TrivialAugment
from imgcls.data.sources import Source, Split
from imgcls.errors import UserError
from imgcls.images.preprocessing import IMAGENET_MEAN, IMAGENET_STD


def split(count: int, offset: int = 0, size: int = 8) -> Split:
    pixels = np.random.default_rng(offset).integers(0, 256, (count, size, size, 3), dtype=np.uint8)
    return Split(tuple(f"{offset + i:05}" for i in range(count)), np.arange(count) % 3, pixels)


class Noise(ImageDataModule):
    """Images of noise, in memory."""

    def __init__(self, count: int = 20, **options: Any) -> None:
        super().__init__(**{"batch_size": 4, "image_size": 8, "resize": 8, **options})
        self.count = count

    def find(self) -> Source:
        return Source(("a", "b", "c"), split(self.count), split(7, 100), split(5, 200))


class Recorder(L.LightningModule):
    """A model that records its batches."""

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


def test_every_epoch_has_another_permutation(tmp_path: Path) -> None:
    model = Recorder()
    trainer(tmp_path).fit(model, datamodule=Noise())
    orders = [[index for batch in batches for index in batch] for batches in model.seen.values()]
    assert len(orders) == 3
    assert all(sorted(order) == list(range(20)) for order in orders)
    assert orders[0] != orders[1] != orders[2]
    assert model.evaluated == list(range(7)) * 4  # once before training, as a sanity check


def test_resumes_within_an_epoch_as_if_it_had_not_stopped(tmp_path: Path) -> None:
    options = {"augment": Augment(crop=PaddedCrop(), flip=0.5)}
    whole = Recorder(save_at=7, folder=tmp_path)  # 5 batches per epoch: the second batch of the second epoch
    trainer(tmp_path).fit(whole, datamodule=Noise(**options))

    rest = Recorder()
    trainer(tmp_path).fit(rest, datamodule=Noise(**options), ckpt_path=tmp_path / "middle.ckpt")
    assert rest.seen == {1: whole.seen[1][2:], 2: whole.seen[2]}
    assert all(torch.equal(image, whole.images[key]) for key, image in rest.images.items())
    assert all(torch.equal(a, b) for a, b in zip(rest.parameters(), whole.parameters(), strict=True))


@pytest.mark.parametrize("save_at", [5, 10])
def test_resumes_from_a_checkpoint_after_the_last_batch_of_an_epoch(tmp_path: Path, save_at: int) -> None:
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


def test_without_a_trainer_batches_are_finished() -> None:
    datamodule = Noise(augment=Augment(crop=RandomResizedCrop(), flip=0.5))
    datamodule.prepare_data()
    datamodule.setup("fit")
    batch = next(iter(datamodule.train_dataloader()))
    assert type(batch) is Batch
    assert batch.images.shape == (4, 3, 8, 8)
    assert batch.images.dtype == torch.float32
    assert batch.labels.tolist() == (batch.index % 3).tolist()


def test_batches_are_finished_when_lightning_has_the_loader_alone(tmp_path: Path) -> None:
    datamodule = Noise(augment=Augment(flip=0.5))
    alone, together = Recorder(), Recorder()
    trainer(tmp_path).fit(alone, datamodule.train_dataloader())
    trainer(tmp_path).fit(together, datamodule=Noise(augment=Augment(flip=0.5)))
    assert alone.seen == together.seen
    assert all(torch.equal(image, together.images[key]) for key, image in alone.images.items())


def test_after_training_batches_are_finished_without_a_trainer(tmp_path: Path) -> None:
    datamodule = Noise()
    trainer(tmp_path, epochs=1).fit(Recorder(), datamodule=datamodule)
    assert type(next(iter(datamodule.train_dataloader()))) is Batch


def test_evaluation_pixels_equal_those_of_the_portable_model() -> None:
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


@pytest.mark.parametrize("kind", ["memory", "disk", "none", "device", "auto"])
def test_the_store_does_not_change_a_batch(pictures: Path, tmp_path: Path, kind: str) -> None:
    def run(store: str) -> list[Batch]:
        augment = Augment(crop=RandomResizedCrop(), flip=0.5, policy=TrivialAugment())
        return list(Folder(pictures, store=store, cache=tmp_path / store, augment=augment).train_dataloader())

    for ours, theirs in zip(run(kind), run("memory"), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(ours[:3], theirs[:3], strict=True))


class Folder(ImageDataModule):
    """Images in files, every third of which is for validation."""

    def __init__(self, root: Path, **options: Any) -> None:
        super().__init__(root, **{"batch_size": 8, "image_size": 16, "resize": 18, **options})

    def find(self) -> Source:
        files = tuple(sorted(self.root.rglob("*.png")))
        labels = np.array([("cat", "dog", "owl").index(file.parent.name) for file in files])
        everything = Split(tuple(file.as_posix() for file in files), labels, files)
        val = np.arange(0, len(files), 3)
        train = np.setdiff1d(np.arange(len(files)), val)
        return Source(("cat", "dog", "owl"), everything.subset(train), everything.subset(val))


def test_unreadable_images_are_left_out_before_training(
    pictures: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole = Folder(pictures).source
    broken = [whole.train.files[3], whole.val.files[2]]
    for path in broken:
        path.write_bytes(path.read_bytes()[:50])
    datamodule = Folder(pictures)
    datamodule.setup("fit")
    assert sorted(path for path, _ in datamodule.source.bad) == sorted(broken)
    assert len(datamodule.source.train) == len(whole.train) - 1
    assert f"Folder, train: 1 of {len(whole.train)} images cannot be read and are left out" in caplog.text
    model = Recorder()
    trainer(tmp_path, epochs=1).fit(model, datamodule=datamodule)
    assert model.evaluated[-len(datamodule.source.val) :] == list(range(len(whole.val) - 1))
    batch = next(iter(datamodule.val_dataloader()))
    expected = datamodule.preprocessing.pixels(datamodule.source.val.open(5))
    assert np.array_equal(batch.images[5].numpy(), datamodule.preprocessing.normalise(expected[None])[0])
    with pytest.raises(UserError, match="1 of 64 images cannot be read"):
        Folder(pictures, on_bad="error").setup("fit")


def test_normalization() -> None:
    assert Noise(normalization="imagenet").mean == IMAGENET_MEAN
    assert Noise().std == IMAGENET_STD
    chosen = Noise(pretrained_statistics=((0.5, 0.5, 0.5), (0.4, 0.4, 0.4)))
    assert chosen.mean == (0.5, 0.5, 0.5)
    assert Noise(normalization=[[0.1, 0.2, 0.3], [1, 1, 1]]).mean == (0.1, 0.2, 0.3)
    computed = Noise(normalization="dataset")
    pixels = computed.source.train.pictures / 255
    assert computed.mean == pytest.approx(pixels.mean((0, 1, 2)).tolist())
    assert computed.std == pytest.approx(pixels.std((0, 1, 2)).tolist())
    loader = computed.train_dataloader()
    images = torch.cat([batch.images for batch in loader])
    assert images.mean((0, 2, 3)).abs().max() < 1e-4
    assert (images.std((0, 2, 3)) - 1).abs().max() < 1e-2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"store": "memori"}, "Did you mean memory"),
        ({"sampler": "random"}, "data.sampler=random: is not known"),
        ({"on_bad": "ignore"}, "data.on_bad=ignore: is not known"),
        ({"normalization": "imagnet"}, "Did you mean imagenet"),
        ({"batch_size": 0}, "1 or more"),
    ],
)
def test_invalid_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Noise(**options)


def test_the_balanced_sampler_and_class_counts() -> None:
    class Uneven(Noise):
        def find(self) -> Source:
            whole = split(60)
            return Source(("a", "b", "c"), Split(whole.names, np.array([0] * 50 + [1] * 8 + [2] * 2), whole.pictures))

    datamodule = Uneven(sampler="balanced", batch_size=30, val_fraction=0, augment=Augment(crop=PaddedCrop()))
    assert datamodule.class_counts().tolist() == [50, 8, 2]
    batches = list(datamodule.train_dataloader())
    labels = torch.cat([batch.labels for batch in batches])
    assert torch.bincount(labels).min() >= 10
    index = torch.cat([batch.index for batch in batches])
    images = torch.cat([batch.images for batch in batches])[index == 59]
    assert len(torch.unique(images.flatten(1), dim=0)) > 3  # the same image, augmented differently each time


def test_mixing_makes_labels_soft(tmp_path: Path) -> None:
    datamodule = Noise(augment=Augment(mixing=Mixing(mixup=0.5, cutmix=1.0)))
    batch = next(iter(datamodule.train_dataloader()))
    assert batch.labels.shape == (4, 3)
    assert batch.labels.dtype == torch.float32
    trainer(tmp_path, epochs=1).fit(Recorder(), datamodule=datamodule)


def test_a_missing_validation_split_is_split_off_training(tmp_path: Path) -> None:
    class Whole(Noise):
        def find(self) -> Source:
            return Source(("a", "b", "c"), split(40))

    first, second = Whole(val_fraction=0.25).source, Whole(val_fraction=0.25).source
    assert first.val is not None
    assert len(first.val) == 10
    assert first.val.names == second.val.names
    assert not set(first.val.names) & set(first.train.names)
    without = Whole(val_fraction=0)
    assert without.val_dataloader() == []
    trainer(tmp_path, epochs=1).fit(Recorder(), datamodule=without)


def test_a_missing_split_is_refused() -> None:
    datamodule = Noise()
    datamodule.opened.source = Source(("a", "b", "c"), split(9), split(3))
    with pytest.raises(UserError, match="no test images"):
        datamodule.test_dataloader()


def test_another_data_set_is_tested_with_the_models_classes() -> None:
    datamodule = Noise()
    datamodule.test_on("val", ("c", "x", "a", "b"))
    batch = next(iter(datamodule.test_dataloader()))
    assert [datamodule.class_names[label] for label in batch.labels] == ["a", "b", "c", "a"]
    with pytest.raises(UserError, match="was not trained with the class 'b'"):
        Noise().test_on("val", ("a", "c"))


def test_all_images_are_tested_once() -> None:
    datamodule = Noise()
    splits = datamodule.source.splits()
    datamodule.test_on("all", datamodule.class_names)
    tested = datamodule.source.splits()["test"]
    assert tested.names == tuple(name for split in splits.values() for name in split.names)
    seen = [batch.index for batch in datamodule.test_dataloader()]
    assert torch.cat(seen).tolist() == list(range(len(tested)))


def test_steps_and_micro_batches() -> None:
    datamodule = Noise(batch_size=8, micro_batch_size=3)
    assert (datamodule.accumulation, datamodule.steps_per_epoch) == (3, 2)
    assert datamodule.expected_micro_batch == pytest.approx(8 / 3)
    datamodule = Noise(batch_size=8, micro_batch_size=3, world_size=2)
    assert (datamodule.accumulation, datamodule.steps_per_epoch) == (2, 2)
    assert datamodule.expected_micro_batch == 2
    small = Noise(batch_size=500)
    assert (small.accumulation, small.steps_per_epoch, small.expected_micro_batch) == (1, 1, 20)


def test_batches_survive_lightnings_transfer() -> None:
    datamodule = Noise(augment=Augment(flip=0.5))
    loader = datamodule.train_dataloader()
    loader.finish = None
    raw = next(iter(loader))
    moved = datamodule.transfer_batch_to_device(raw, torch.device("cpu"), 0)
    assert type(moved) is RawBatch
    assert moved.augmentation is raw.augmentation
    assert moved.images.dtype == torch.uint8
    assert type(datamodule.on_after_batch_transfer(moved, 0)) is Batch


def test_half_precision_weights_have_half_precision_images(tmp_path: Path) -> None:
    class Half(Recorder):
        def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
            assert batch.images.dtype == torch.bfloat16
            return super().training_step(batch, batch_idx)

    trainer(tmp_path, epochs=1, precision="bf16-true").fit(Half(), datamodule=Noise())
