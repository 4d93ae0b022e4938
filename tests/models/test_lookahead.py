"""The slow average that the weights are reset to."""

from __future__ import annotations

from pathlib import Path

import lightning as L
import pytest
import torch

from imgcls.errors import UserError
from imgcls.models.classifier import Classifier
from imgcls.models.lookahead import Lookahead
from imgcls.models.optim import SGD

from .helpers import KilledError, Loader, SaveAndKill, classifier, trainer

EPOCHS, BATCHES = 2, 5


class Weights(L.Callback):
    """Records the head's weights after each step, before or after the other callbacks of the step."""

    def __init__(self) -> None:
        self.seen: list[torch.Tensor] = []

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: object) -> None:
        self.seen.append(pl_module.network.head[1].weight.detach().clone())  # type: ignore[union-attr, index, operator]


def fit(lookahead: Lookahead, *more: L.Callback, **options: object) -> tuple[Classifier, list[torch.Tensor]]:
    before, after = Weights(), Weights()
    module = classifier("test_vit", optim=SGD(lr=0.05, schedule="constant"))
    trainer(EPOCHS, [before, lookahead, after, *more]).fit(module, Loader.of(35, 7), **options)
    return module, [*before.seen, *after.seen]


def test_weights_move_to_an_average_whose_share_grows() -> None:
    lookahead = Lookahead(every=2, decay=0.8, power=1.0)
    _, seen = fit(lookahead)
    before, after = seen[: EPOCHS * BATCHES], seen[EPOCHS * BATCHES :]
    slow = before[1]  # the first update only initialises the average
    for step in range(1, EPOCHS * BATCHES + 1):
        fast = before[step - 1]
        if step % 2 or step == 2:
            assert torch.equal(after[step - 1], fast)
            continue
        keep = 1.0 if step == EPOCHS * BATCHES else 0.64 * step / 10
        slow = keep * slow + (1 - keep) * fast
        assert torch.allclose(after[step - 1], slow, atol=1e-6), step


def test_the_training_ends_with_the_average() -> None:
    lookahead = Lookahead(every=3, start_epoch=1)
    module, _ = fit(lookahead)
    assert lookahead._slow is not None
    for name, value in module.network.state_dict().items():
        if value.is_floating_point():
            assert torch.equal(value, lookahead._slow[name]), name


@pytest.mark.parametrize("step", [3, 5, 8])
def test_a_resumed_run_continues_the_same_average(step: int, tmp_path: Path) -> None:
    whole, _ = fit(Lookahead(every=2))
    with pytest.raises(KilledError):
        fit(Lookahead(every=2), SaveAndKill(step, tmp_path / "killed.ckpt"))
    rest, _ = fit(Lookahead(every=2), ckpt_path=tmp_path / "killed.ckpt", weights_only=True)
    for name, value in whole.state_dict().items():
        assert torch.equal(rest.state_dict()[name], value), name


def test_invalid_options_are_refused() -> None:
    with pytest.raises(UserError, match=r"optim\.lookahead"):
        Lookahead(every=0)
