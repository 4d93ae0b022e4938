"""The ensemble answers the mean of its members' probabilities, in one network that is described by plain values."""

from __future__ import annotations

import json

import pytest
import torch

from imgcls.models.architecture import Architecture
from imgcls.models.backbones import create_network, network_from_architecture
from imgcls.models.ensemble import ensemble_of
from imgcls.models.network import Network

TEMPERATURES = [0.5, 1.0, 2.0]


def members(*, shared: bool) -> list[Network]:
    torch.manual_seed(0)
    networks = [create_network("test_resnet", 4).eval() for _ in TEMPERATURES]
    for network in networks:
        torch.nn.init.normal_(network.head[1].weight)  # type: ignore[index]
        if shared:
            network.backbone.load_state_dict(networks[0].backbone.state_dict())
    return networks


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("multilabel", [True, False])
@torch.no_grad()
def test_the_mean_of_the_probabilities(shared: bool, multilabel: bool) -> None:
    networks = members(shared=shared)
    images = torch.randn(5, 3, 24, 24)
    activate = torch.sigmoid if multilabel else lambda logits: logits.softmax(dim=1)
    parts = [activate(net(images) / divisor) for net, divisor in zip(networks, TEMPERATURES, strict=True)]
    expected = torch.stack(parts).mean(dim=0)
    ensemble = ensemble_of(networks, TEMPERATURES, multilabel=multilabel)
    torch.testing.assert_close(activate(ensemble(images)), expected)
    torch.testing.assert_close(activate(ensemble(ensemble.features(images))), expected)
    parameters = sum(value.numel() for value in ensemble.parameters())
    one = sum(value.numel() for value in networks[0].parameters())
    assert parameters < 1.2 * one if shared else parameters == 3 * one, "a frozen backbone is stored once"

    described = Architecture.from_dict(json.loads(json.dumps(ensemble.architecture.as_dict())))
    rebuilt = network_from_architecture(described).eval()
    rebuilt.load_state_dict(ensemble.state_dict())
    torch.testing.assert_close(rebuilt(images), ensemble(images))


@torch.no_grad()
def test_sure_members_give_finite_outputs() -> None:
    networks = members(shared=True)
    for network in networks:
        network.head[1].weight.mul_(1e4)  # type: ignore[index]
    for multilabel in (True, False):
        outputs = ensemble_of(networks, TEMPERATURES, multilabel=multilabel)(torch.randn(3, 3, 24, 24))
        assert torch.isfinite(outputs).all()


def test_a_single_network_is_described_as_before() -> None:
    assert "backbones" not in create_network("test_resnet", 3).architecture.as_dict()
