"""No step of a training waits for the device.

The device here is torch's `meta`, which holds no values: what reads one (`.item()`, `.cpu()`, `nonzero`, a mask used
as an index, `bincount`) raises, as it would wait for a CUDA device. Copies to it are listed if the host would wait for
them. So a training on `meta` that completes its steps has no hidden synchronisation in them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import imgcls
from imgcls.data.augment import Augment
from imgcls.data.crops import PaddedCrop, RandomResizedCrop
from imgcls.data.mixing import Mixing
from imgcls.data.policies import ColorJitter, RandAugment, RandomErasing, TrivialAugment
from imgcls.data.randomness import Draws
from imgcls.data.stores.store import ArrayStore, DeviceStore
from imgcls.system.interrupts import StopSignals
from imgcls.system.lightning_internals import is_last_batch
from imgcls.training.pipeline import train

META = torch.device("meta")


class Copies(TorchDispatchMode):
    """Lists the copies to the device that the host would wait for."""

    def __init__(self) -> None:
        super().__init__()
        self.blocking: list[str] = []
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        name = func.name()
        source = args[1] if name == "aten::copy_" else args[0] if name == "aten::_to_copy" else None
        if isinstance(source, Tensor) and source.device.type == "cpu" and out.device == META:
            self.count += 1
            waits = not (args[2] if len(args) > 2 else kwargs.get("non_blocking", False))
            if waits:
                self.blocking.append(f"{name} of {tuple(source.shape)}")
        return out


def test_the_meta_device_refuses_to_read_values() -> None:
    """The premise of this module."""
    values = torch.ones(3, device=META)
    for read in (
        lambda: values.sum().item(),
        lambda: values.cpu(),
        lambda: values.nonzero(),
        lambda: values[values > 0],
        lambda: bool((values > 0).all()),
        lambda: torch.bincount(values.long()),
    ):
        with pytest.raises((RuntimeError, NotImplementedError)):
            read()
    with Copies() as copies:
        torch.ones(2).to(META)
        torch.ones(2).to(META, non_blocking=True)
        values.copy_(torch.ones(3))
    assert copies.count == 3
    assert len(copies.blocking) == 2


# ---- augmentation

AUGMENTATIONS = {
    "nothing": Augment(),
    "crop": Augment(RandomResizedCrop(), flip=0.5),
    "padded": Augment(PaddedCrop(), flip=0.5),
    "reflected": Augment(PaddedCrop(mode="reflect"), flip=0.5, alternate_flip=True),
    "trivial": Augment(policy=TrivialAugment()),
    "rand": Augment(policy=RandAugment()),
    "jitter": Augment(jitter=ColorJitter(0.4, 0.4, 0.4, 0.1)),
    "erasing": Augment(erasing=RandomErasing(1.0)),
    "noise": Augment(erasing=RandomErasing(0.5, fill="noise")),
    "mixing": Augment(mixing=Mixing(mixup=0.4, cutmix=1.0)),
}


@pytest.mark.parametrize("augment", AUGMENTATIONS.values(), ids=AUGMENTATIONS)
def test_no_augmentation_waits(augment: Augment) -> None:
    images, draws = torch.empty(64, 3, 24, 24, dtype=torch.uint8, device=META), Draws.of(0, 0, torch.arange(64))
    labels = torch.zeros(64, dtype=torch.int64, device=META)
    with Copies() as copies:
        pixels = augment.pixels(images, draws, 20, torch.ones(64)).float()
        done, _ = augment.finish(pixels, labels, draws, 5)
    assert done.shape == (64, 3, 20, 20)
    assert not copies.blocking


def test_images_stored_on_the_device_are_gathered_without_waiting() -> None:
    stored = ArrayStore(np.zeros((9, 4, 4, 3), dtype=np.uint8), np.ones(9, dtype=np.float32))
    store = DeviceStore(stored, META)
    with Copies() as copies:
        assert store.gather(torch.tensor([1, 5])).device == META
    assert copies.count == 1
    assert not copies.blocking


# ---- a whole training


class Stop(Exception):  # noqa: N818 - it ends a test
    """Raised when the requested steps are done."""


class Watch(L.Callback):
    """Records copies from the start of the training to the last batch of its first epoch, and ends it there."""

    copies: Copies | None = None
    steps = 0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert pl_module.device == META
        Watch.copies, Watch.steps = Copies(), 0
        Watch.copies.__enter__()

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        Watch.steps = trainer.global_step
        if is_last_batch(trainer):
            raise Stop

    def on_exception(self, *args: Any) -> None:
        if Watch.copies is not None:
            Watch.copies.__exit__(None, None, None)


class NoDevice(CPUAccelerator):
    """Accepts any device of a strategy."""

    def setup_device(self, device: torch.device) -> None:
        pass


class OnMeta(SingleDeviceStrategy):
    """Uses `meta` as its device, and does not move the network back at the end."""

    def __init__(self) -> None:
        super().__init__(META)

    def teardown(self) -> None:
        pass


def trainer_on_meta(**options: Any) -> L.Trainer:
    """Lightning's Trainer with `meta` as its device."""
    fixed = {"accelerator": NoDevice(), "devices": 1, "strategy": OnMeta()}
    return L.Trainer(**{**options, **fixed, "callbacks": [*options["callbacks"], Watch()]})


@pytest.mark.parametrize(
    "options",
    [
        ["experiment=cifar10_fast", "model.options={widths: [8, 16, 16]}"],
        ["experiment=cifar10_accurate", "model.options={widths: [8, 16, 16]}"],
        ["data=cifar10", "model.name=test_resnet", "model.pretrained=false", "optim.ema=0.9", "augment=strong"],
        [
            "data=cifar10",
            "model.name=test_resnet",
            "model.pretrained=false",
            "optim=sgd",
            "loss.class_weights=balanced",
        ],
    ],
    ids=["cifar10_fast", "cifar10_accurate", "ema and strong augmentation", "class weights"],
)
@pytest.mark.parametrize("parts", [1, 2])
def test_no_step_of_a_training_waits(
    options: list[str], parts: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.test_recipes import write_cifar10

    cfg = imgcls.compose(
        [
            *options,
            f"data.root={write_cifar10(tmp_path / 'pictures')}",
            f"run_dir={tmp_path / 'run'}",
            "data.batch_size=16",
            f"data.micro_batch_size={16 // parts}",
            "trainer.accelerator=cpu",
            "trainer._target_=tests.training.test_synchronisation.trainer_on_meta",
            "debug.every=1" if parts == 1 else "debug=off",
            f"trainer.limit_train_batches={15 * parts}",
        ]
    )
    # before the training, Lightning asks the device whether all processes have batches
    for loop in ("fit_loop", "evaluation_loop"):
        monkeypatch.setattr(f"lightning.pytorch.loops.{loop}.has_len_all_ranks", lambda *_: True)
    with pytest.raises(Stop):
        train(cfg, tmp_path / "run", StopSignals())
    assert Watch.steps == 15
    assert Watch.copies is not None
    assert Watch.copies.count > 15
    assert not Watch.copies.blocking
