"""The fast networks: whitened images, convolutions that start as identities, parts that stop training."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from imgcls.errors import UserError
from imgcls.models.backbones import create_network, network_from_architecture
from imgcls.models.network import Network
from imgcls.models.whitening import whitening_filters

from .helpers import CLASSES

NARROW = {"widths": [8, 16, 16]}


def small(name: str = "cifarnet", **options: object) -> Network:
    torch.manual_seed(0)
    return create_network(name, CLASSES, options=NARROW, image_size=32, **options)  # type: ignore[arg-type]


def smooth(count: int) -> Tensor:
    """Images whose neighbouring pixels are similar, as in photographs."""
    coarse = torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    fine = torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    return F.interpolate(coarse, scale_factor=4, mode="bilinear") + 0.1 * fine


def test_patches_come_out_uncorrelated_and_with_both_signs() -> None:
    images = smooth(600)
    out = F.conv2d(images, whitening_filters(images, 2)).transpose(0, 1).flatten(1)
    positive, negative = out.chunk(2)
    assert torch.allclose(positive, -negative)
    moments = positive @ positive.T / positive.shape[1]
    assert torch.allclose(moments, torch.eye(12), atol=0.1)  # eps makes the weakest a little weaker
    patches = images.unfold(2, 2, 1).unfold(3, 2, 1).permute(1, 4, 5, 0, 2, 3).reshape(12, -1)
    before = patches @ patches.T / patches.shape[1]
    assert not torch.allclose(before, torch.diag(before.diagonal()), atol=0.1)


def test_images_without_variance_have_finite_filters() -> None:
    assert whitening_filters(torch.zeros(3, 3, 8, 8), 2).isfinite().all()
    grey = torch.randn(50, 1, 8, 8).expand(-1, 3, -1, -1)
    assert whitening_filters(grey, 2).abs().max() < 50


@pytest.mark.parametrize("name", ["cifarnet", "cifarnet_wide"])
def test_the_first_filters_are_computed_from_images_and_fixed(name: str) -> None:
    network = small(name)
    network.backbone.initialise_from(smooth(20))  # type: ignore[operator]
    before = network.backbone.whiten.weight.clone()  # type: ignore[union-attr, operator]
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    network.train()(smooth(4)).square().sum().backward()
    optimizer.step()
    assert torch.equal(before, network.backbone.whiten.weight)  # type: ignore[union-attr, arg-type]
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    assert all(not norm.weight.requires_grad and norm.bias.grad is not None for norm in norms)


def test_whitening_is_not_rounded_to_bfloat16() -> None:
    network = small().backbone
    network.initialise_from(smooth(100))  # type: ignore[operator]
    images, seen = smooth(4), []
    network.groups.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))  # type: ignore[operator, union-attr]
    network(images)
    with torch.autocast("cpu", torch.bfloat16):
        network(images)
        rounded = F.gelu(F.conv2d(images, network.whiten.weight, network.whiten.bias))  # type: ignore[arg-type, union-attr]
    assert seen[1].dtype == torch.bfloat16
    error, usual = ((maps.float() - seen[0]).abs().mean() for maps in (seen[1], rounded))
    assert error < 0.5 * usual


def test_convolutions_start_as_identities() -> None:
    first = small().backbone.groups[0].convs[1]  # type: ignore[union-attr, index]
    maps = torch.randn(2, 8, 5, 5)
    assert torch.equal(first(maps), maps)


def test_the_first_bias_trains_in_the_first_epochs_only() -> None:
    network = small().train()
    bias = network.backbone.whiten.bias  # type: ignore[union-attr]
    for epoch, trains in ((0, True), (2, True), (3, False), (1, True)):
        network.begin_epoch(epoch)
        network.zero_grad()
        network(smooth(2)).sum().backward()
        assert (bias.grad is not None) == trains


@pytest.mark.parametrize("side", [32, 40, 64])
def test_images_of_other_sizes_are_supported(side: int) -> None:
    network = small("cifarnet_wide").eval()
    assert network.features(torch.randn(2, 3, side, side)).shape == (2, 16)


def test_the_architecture_rebuilds_widths_and_views() -> None:
    network = small("cifarnet_wide", views="flip").eval()
    rebuilt = network_from_architecture(network.architecture).eval()
    rebuilt.load_state_dict(network.state_dict())
    assert rebuilt.architecture.views == "flip"
    images = smooth(2)
    assert torch.equal(network(images), rebuilt(images))


def test_invalid_options_of_the_model_are_refused() -> None:
    with pytest.raises(UserError, match="widht"):
        create_network("cifarnet", 2, options={"widht": 3})
    with pytest.raises(UserError, match="three widths"):
        create_network("cifarnet", 2, options={"widths": [3, 4]})
