"""The greedy soup averages what validation approves of, and becomes the run's model."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from imgcls.evaluate import evaluate
from imgcls.models.backbones import create_network
from imgcls.training.batch_norms import compute_statistics
from imgcls.training.checkpoint_io import read_checkpoint
from imgcls.training.soup import greedy_soup
from tests.trainings import Fit


def test_a_member_that_makes_the_average_worse_is_left_out() -> None:
    states = [{"w": torch.tensor([value]), "steps": torch.tensor(index)} for index, value in enumerate([2.0, 9.0, 0.0])]
    members, average = greedy_soup(states, lambda state, _: -abs(float(state["w"]) - 1.0))
    assert members == [0, 2], "with 9 the mean is further from 1"
    assert (average["w"].item(), average["steps"].item()) == (1.0, 0)
    members, average = greedy_soup(states, lambda state, _: float(state["w"] == 2.0))
    assert (members, average["w"].item()) == ([0], 2.0)


def test_half_precision_is_averaged_in_float32() -> None:
    states = [{"w": torch.tensor([value], dtype=torch.bfloat16)} for value in (1.0, 2.0, 3.0)]
    _, average = greedy_soup(states, lambda *_: 0.0)
    assert average["w"].dtype == torch.bfloat16
    assert average["w"].item() == 2.0


def test_the_average_is_the_run_s_model_and_no_worse_on_validation(fit: Fit) -> None:
    run = fit("checkpoint.average=greedy", "trainer.max_epochs=6", "checkpoint.monitor=val/loss", "checkpoint.mode=min")
    best = min(row["val/loss"] for row in run.history)
    assert run.metrics["averaged_epochs"] >= 2
    assert run.metrics["val/loss"] <= best
    assert len(list((run.folder / "checkpoints").glob("epoch_*.ckpt"))) == 5
    assert evaluate(run, split="val")["loss"] == pytest.approx(run.metrics["val/loss"], abs=1e-4)
    assert evaluate(run)["loss"] == pytest.approx(run.metrics["test/loss"], abs=1e-4)
    weights = [read_checkpoint(file)["state_dict"] for file in (run.folder / "checkpoints").glob("epoch_*.ckpt")]
    name = "network.head.1.weight"
    soup: Tensor = read_checkpoint(run.folder / "checkpoints" / "best.ckpt")["state_dict"][name]
    assert not any(torch.equal(soup, state[name]) for state in weights)


def test_statistics_are_those_of_the_training_images(fit: Fit) -> None:
    class Data:
        """Eight batches of images whose mean is 5."""

        batch_size = 8

        def in_order(self, *_: object, **__: object) -> list[object]:
            from imgcls.data.batch import Batch

            torch.manual_seed(1)
            return [Batch(torch.randn(8, 3, 24, 24) + 5, torch.zeros(8), torch.zeros(8)) for _ in range(8)]

    network = create_network("test_resnet", 3)
    first = next(module for module in network.modules() if isinstance(module, torch.nn.BatchNorm2d))
    compute_statistics(network.train(), Data())  # type: ignore[arg-type]
    assert network.training
    assert first.momentum == 0.1
    seen: list[Tensor] = []
    first.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        for batch in Data().in_order():
            network.eval()(batch.images)  # type: ignore[attr-defined]
    values = torch.cat(seen).transpose(0, 1).flatten(1)
    assert first.running_mean is not None
    assert first.running_mean.numpy() == pytest.approx(values.mean(1).numpy(), abs=1e-3)
