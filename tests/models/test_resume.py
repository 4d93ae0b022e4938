"""A training that was interrupted anywhere ends bit for bit like one that was not; the content of checkpoints."""

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import Checkpoint
from torch import Tensor

from imgcls.models.classifier import Classifier
from imgcls.models.ema import Average, WeightAveraging
from imgcls.models.optim import SGD, AdamW

from .helpers import KilledError, Loader, SaveAndKill, classifier, network, trainer

EPOCHS, STEPS = 3, 4


def build(**options: Any) -> Classifier:
    options.setdefault("optim", AdamW(lr=1e-2, schedule="cosine", warmup_epochs=0.5))
    return classifier(options={"drop_rate": 0.3, "drop_path_rate": 0.1}, **options)


class Rows(Checkpoint):  # called after the module, which logs train/loss
    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.rows.append({name: value.item() for name, value in trainer.callback_metrics.items()})


def run(
    options: dict[str, Any],
    decay: float | None,
    kill: SaveAndKill | None = None,
    resume: Path | None = None,
    seed: int = 0,
) -> tuple[list[dict[str, float]], dict[str, Tensor]]:
    module, rows = build(seed=seed, **options), Rows()
    callbacks: list[L.Callback] = [rows, *([WeightAveraging(decay)] if decay else []), *([kill] if kill else [])]
    quiet = trainer(EPOCHS, callbacks)
    loaders = Loader.of(STEPS * 6, 6), Loader.of(20, 8)
    quiet.fit(module, *loaders, ckpt_path=resume, weights_only=True)
    rows.rows.append(quiet.test(module, Loader.of(20, 8), verbose=False)[0])
    return rows.rows, {name: value.clone() for name, value in module.state_dict().items()}


@pytest.mark.parametrize("kill_at", [1, 4, 6, 11, 12])
@pytest.mark.parametrize(
    ("options", "decay"),
    [
        ({}, None),
        ({"freeze": "head_first"}, 0.9),
        ({"optim": SGD(lr=0.01, schedule="onecycle", layer_decay=0.8)}, 0.9),
    ],
)
def test_a_resumed_training_ends_the_same(
    options: dict[str, Any], decay: float | None, kill_at: int, tmp_path: Path
) -> None:
    rows, state = run(options, decay)
    file = tmp_path / "last.ckpt"
    with pytest.raises(KilledError):
        run(options, decay, kill=SaveAndKill(kill_at, file))
    torch.manual_seed(99)
    resumed_rows, resumed = run(options, decay, resume=file, seed=5)  # the new process starts from other weights
    assert resumed_rows == rows[-len(resumed_rows) :]  # including train/loss of the interrupted epoch
    assert len(resumed_rows) == EPOCHS + 1 - kill_at // STEPS
    assert state.keys() == resumed.keys()
    assert all(torch.equal(state[name], resumed[name]) for name in state)


# ---- the average of the weights


def test_the_average_follows_the_formula() -> None:
    net = network()
    average = Average(net, decay=0.9)
    expected = {name: value.clone() for name, value in net.state_dict().items()}
    for step in range(1, 200):
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.add_(0.01)
        average.update(step)
        decay = min(0.9, (1 + step) / (10 + step))
        for name, parameter in net.named_parameters():
            expected[name] = decay * expected[name] + (1 - decay) * parameter.detach()
    for name, _ in net.named_parameters():
        assert torch.allclose(average.shadow[name], expected[name], atol=1e-4)


class Seen(L.Callback):
    """Records the network's weights during validation and during training."""

    def __init__(self) -> None:
        self.validated: dict[str, Tensor] = {}
        self.trained: dict[str, Tensor] = {}

    def on_validation_batch_start(self, trainer: L.Trainer, pl_module: Any, *args: Any) -> None:
        self.validated = {name: value.clone() for name, value in pl_module.network.state_dict().items()}

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        self.trained = {name: value.clone() for name, value in pl_module.network.state_dict().items()}


class SaveBest(L.Callback):
    def __init__(self, file: Path) -> None:
        self.file = file

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        trainer.save_checkpoint(self.file, weights_only=True)


def test_the_validated_weights_are_saved_and_tested(tmp_path: Path) -> None:
    module, seen, file = build(), Seen(), tmp_path / "best.ckpt"
    quiet = trainer(2, [WeightAveraging(0.9), seen, SaveBest(file)])
    quiet.fit(module, Loader.of(24, 6), Loader.of(20, 8))
    checkpoint = torch.load(file, weights_only=True)
    for name, value in seen.validated.items():
        assert torch.equal(checkpoint["state_dict"][f"network.{name}"], value)
        assert torch.equal(checkpoint["current_state_dict"][f"network.{name}"], seen.trained[name])
        assert torch.equal(module.network.state_dict()[name], value)
    assert not torch.equal(seen.validated["head.1.weight"], seen.trained["head.1.weight"])
    tested = quiet.test(module, Loader.of(20, 8), verbose=False)[0]
    assert tested["test/loss"] == pytest.approx(float(quiet.callback_metrics.get("val/loss", tested["test/loss"])))
    alone = trainer().test(build(seed=3), Loader.of(20, 8), ckpt_path=file, verbose=False)[0]
    assert alone == tested


def test_a_checkpoint_from_within_a_validation_has_the_same_weights(tmp_path: Path) -> None:
    class SaveInside(L.Callback):
        def on_validation_batch_end(self, trainer: L.Trainer, pl_module: Any, *args: Any) -> None:
            trainer.save_checkpoint(tmp_path / "inside.ckpt", weights_only=True)

    module, seen = build(), Seen()
    trainer(1, [WeightAveraging(0.9), seen, SaveInside()]).fit(module, Loader.of(24, 6), Loader.of(20, 8))
    checkpoint = torch.load(tmp_path / "inside.ckpt", weights_only=True)
    assert torch.equal(checkpoint["state_dict"]["network.head.1.weight"], seen.validated["head.1.weight"])
    assert torch.equal(checkpoint["current_state_dict"]["network.head.1.weight"], seen.trained["head.1.weight"])


def test_lightnings_own_average_would_be_lost(tmp_path: Path) -> None:
    """Why imgcls.models.ema exists: when this fails, Lightning saves the average and ours can be removed."""
    from lightning.pytorch.callbacks import EMAWeightAveraging

    module, seen, file = build(), Seen(), tmp_path / "best.ckpt"
    trainer(1, [EMAWeightAveraging(decay=0.9), seen, SaveBest(file)]).fit(module, Loader.of(24, 6), Loader.of(20, 8))
    checkpoint = torch.load(file, weights_only=True)
    assert not torch.equal(checkpoint["state_dict"]["network.head.1.weight"], seen.validated["head.1.weight"])


def test_a_decay_out_of_range_is_refused() -> None:
    with pytest.raises(ValueError, match="decay=1"):
        WeightAveraging(1.0)
