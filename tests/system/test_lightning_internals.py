"""The private doors of Lightning are still there, and lead to what their names say."""

from __future__ import annotations

from typing import Any

import lightning as L
from lightning.pytorch.strategies import FSDPStrategy

from imgcls.system.lightning_internals import (
    batch_number,
    batches_begun,
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
