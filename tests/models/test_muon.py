"""Orthogonalised steps, and the parameters that take them."""

from __future__ import annotations

import pytest
import torch

from imgcls.models.muon import Muon, MuonSGD, orthogonalise

from .helpers import Loader, classifier, network, trainer


@pytest.mark.parametrize("shape", [(8, 8), (6, 20), (20, 6), (3, 8, 5)])
def test_singular_values_are_near_one_and_directions_stay(shape: tuple[int, ...]) -> None:
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    found = orthogonalise(matrices)
    values = torch.linalg.svdvals(found)
    assert values.min() > 0.4  # the smallest ones of a square matrix have not converged yet
    assert values.max() < 1.3
    left, _, right = torch.linalg.svd(matrices, full_matrices=False)
    assert torch.nn.functional.cosine_similarity(found.flatten(), (left @ right).flatten(), dim=0) > 0.95


def test_matrices_of_the_backbone_take_orthogonal_steps_and_the_rest_sgd_steps() -> None:
    net = network()
    names = {id(parameter): name for name, parameter in net.named_parameters()}
    found = {}
    for group in Muon(lr=0.02, other_lr=0.5, weight_decay=0.1, backbone_lr_scale=0.5).parameter_groups(net):
        for parameter in group["params"]:
            found[names[id(parameter)]] = (group["orthogonal"], group["lr"], group["weight_decay"])
    assert found.keys() == dict(net.named_parameters()).keys()
    assert found["backbone.conv1.0.weight"] == (True, 0.01, 0.1)
    assert found["backbone.bn1.bias"] == (False, 0.25, 0.0)
    assert found["head.1.weight"] == (False, 0.5, 0.1)


def test_the_other_steps_are_those_of_torchs_nesterov_sgd() -> None:
    torch.manual_seed(0)
    start = torch.randn(4, 3)
    ours, theirs = torch.nn.Parameter(start.clone()), torch.nn.Parameter(start.clone())
    rates = {"lr": 0.1, "weight_decay": 0.05}
    first = MuonSGD([{"params": [ours], "orthogonal": False, **rates}], momentum=0.8)
    second = torch.optim.SGD([theirs], momentum=0.8, nesterov=True, **rates)
    for _ in range(5):
        gradient = torch.randn(4, 3)
        ours.grad, theirs.grad = gradient.clone(), gradient.clone()
        first.step(), second.step()
    assert torch.allclose(ours, theirs, atol=1e-6)


def test_a_step_changes_a_matrix_by_the_rate_in_every_direction() -> None:
    weight = torch.nn.Parameter(torch.zeros(6, 2, 2, 2))
    optimizer = MuonSGD([{"params": [weight], "orthogonal": True, "lr": 0.1, "weight_decay": 0.0}], momentum=0.0)
    weight.grad = torch.randn(6, 2, 2, 2)
    optimizer.step()
    values = torch.linalg.svdvals(weight.detach().flatten(1))
    assert 0.04 < values.min() <= values.max() < 0.13


def test_a_fixed_norm_is_that_of_an_orthogonal_matrix_whatever_the_decay() -> None:
    weight = torch.nn.Parameter(3 * torch.eye(4, 8))
    rates = {"lr": 0.1, "weight_decay": 0.5, "orthogonal": True}
    optimizer = MuonSGD([{"params": [weight], **rates}], momentum=0.0, fixed_norm=True)
    weight.grad = torch.eye(4, 8)
    optimizer.step()
    assert weight[:, 4:].abs().max() < 1e-3
    assert torch.allclose(weight[:, :4].diagonal(), torch.tensor(0.9), atol=0.05)  # 1, and a step of about 0.1
    directions = Muon(fixed_norm=True, lr=0.1).optimizer([{"params": [weight], **rates}], fused=True)
    assert directions.param_groups[0]["fixed_norm"]


def test_layers_of_one_size_are_computed_together_with_the_same_result() -> None:
    torch.manual_seed(0)
    starts = [torch.randn(size) for size in [(6, 2, 3, 3), (4, 6, 1, 1), (6, 2, 3, 3), (6, 18)]]
    gradients = [torch.randn_like(start) for start in starts]

    def stepped(*groups: list[int]) -> list[torch.Tensor]:
        parameters = [torch.nn.Parameter(start.clone()) for start in starts]
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient.clone()
        rates = {"orthogonal": True, "lr": 0.1, "weight_decay": 0.1}
        for group in groups:
            MuonSGD([{"params": [parameters[place] for place in group], **rates}], momentum=0.5).step()
        return parameters

    for together, alone in zip(stepped([0, 1, 2, 3]), stepped([0], [1], [2], [3]), strict=True):
        assert torch.allclose(together, alone, atol=1e-5)


def test_it_learns() -> None:
    module = classifier(optim=Muon(lr=0.02, other_lr=0.05, schedule="constant"))
    quiet = trainer(8)
    quiet.fit(module, Loader.of(35, 7))
    assert float(quiet.callback_metrics["train/loss"]) < 1.6  # chance: 1.95
