"""The outputs that calibrate a model are computed once, and are those of the model's weights."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from imgcls.callbacks.last_validation import LastValidation
from imgcls.data.module import ImageDataModule
from tests.trainings import Fit

VALIDATED = "val_logits.npy"


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The splits whose images are computed after the training."""
    found: list[str] = []
    original = ImageDataModule.test_dataloader
    monkeypatch.setattr(ImageDataModule, "test_dataloader", lambda self: found.append(self.tested) or original(self))
    return found


def validated(fit: Fit, options: Sequence[str], monkeypatch: pytest.MonkeyPatch) -> tuple[bytes, bytes]:
    """The validation outputs of a run, and those where none are kept."""
    first = fit(*options)
    monkeypatch.setattr(LastValidation, "outputs_after", lambda *_: None)
    second = fit(*options, name="again")
    return (first.folder / VALIDATED).read_bytes(), (second.folder / VALIDATED).read_bytes()


@pytest.mark.parametrize("option", ["optim.lr=1e-3", "optim.ema=0.9", "model.views=flip"])
def test_the_best_epochs_validation_is_not_repeated_where_it_is_the_last(
    fit: Fit, passes: list[str], monkeypatch: pytest.MonkeyPatch, option: str
) -> None:
    kept, computed = validated(fit, ["trainer.max_epochs=1", option], monkeypatch)
    assert passes == ["test", "val", "test"]
    assert kept == computed


@pytest.mark.parametrize(
    "options",
    [
        ("trainer.max_epochs=3", "checkpoint.monitor=val/loss", "checkpoint.mode=max", "optim.lr=1e-2"),
        ("trainer.max_epochs=2", "checkpoint.average=greedy"),
        ("trainer.max_epochs=1", "+trainer.val_check_interval=3"),
        ("trainer.max_epochs=1", "+trainer.limit_val_batches=1", "data.batch_size=4"),
    ],
    ids=[
        "an earlier epoch is chosen",
        "the model is an average",
        "a step came after the validation",
        "it saw a part of the images",
    ],
)
def test_it_is_where_the_model_has_other_weights(
    fit: Fit, passes: list[str], monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...]
) -> None:
    first, second = validated(fit, options, monkeypatch)
    assert passes == ["val", "test"] * 2
    assert first == second
