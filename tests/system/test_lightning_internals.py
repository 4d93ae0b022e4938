"""The private doors of Lightning are still there, and lead to what their names say."""

from __future__ import annotations

from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.strategies import FSDPStrategy

from imgcls.system.lightning_internals import (
    batch_number,
    batches_begun,
    can_fuse_optimizer,
    checkpoint_of_weights,
    is_last_batch,
    is_within_step,
    set_up_loader_again,
    trainer_of,
)
from tests.models.helpers import Loader, classifier, trainer


class Look(L.Callback):
    """Writes down what the doors say after each batch."""

    def __init__(self) -> None:
        self.rows: list[tuple[Any, ...]] = []

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        self.rows.append(
            (batch_number(trainer), batches_begun(trainer), is_within_step(trainer), is_last_batch(trainer))
        )


def test_batches_and_steps() -> None:
    look, module = Look(), classifier()
    quiet = trainer(2, [look], accumulate_grad_batches=2)
    assert batch_number(quiet) == -1
    assert trainer_of(module) is None
    quiet.fit(module, Loader.of(12, 4))
    assert look.rows == [
        (0, 1, True, False),
        (1, 2, False, False),
        (2, 3, False, True),
        (3, 1, True, False),
        (4, 2, False, False),
        (5, 3, False, True),
    ]
    assert trainer_of(module) is quiet
    content = checkpoint_of_weights(quiet)
    assert set(content["state_dict"]) == set(module.state_dict())
    assert "optimizer_states" not in content


def test_the_loader_is_set_up_again() -> None:
    quiet = trainer()
    quiet.fit(classifier(), Loader.of(8, 4))
    assert quiet.fit_loop._combined_loader is not None
    set_up_loader_again(quiet)
    quiet.fit_loop.setup_data()
    assert quiet.fit_loop._combined_loader is not None


def test_what_is_overridden_is_called() -> None:
    assert callable(FSDPStrategy._setup_model)


class Norms(L.Callback):
    """The norm of the gradients with which the optimiser has made each step."""

    def __init__(self) -> None:
        self.norms: list[float] = []

    def on_before_zero_grad(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        gradients = [parameter.grad for parameter in pl_module.parameters() if parameter.grad is not None]
        if gradients:
            self.norms.append(float(torch.nn.utils.get_total_norm(gradients)))


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_gradients_are_clipped_whatever_the_precision(precision: Any) -> None:
    look = Norms()
    quiet = trainer(2, [look], precision=precision, gradient_clip_val=1e-3)
    quiet.fit(classifier(), Loader.of(12, 4))
    assert can_fuse_optimizer(quiet)
    assert quiet.optimizers[0].defaults["fused"]
    assert len(look.norms) >= 4
    assert max(look.norms) < 1.01e-3
