"""Features of several depths: a network's own ones last, and what a late stage has lost."""

from __future__ import annotations

import pytest
import torch

from imgcls.models.backbones import create_network
from imgcls.models.depths import CHANNELS, QUARTERED, STAGES, at_depths


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("test_resnet", {}),
        ("test_convnext", {}),
        ("mobilenetv3_small_100", {}),  # whose features are of a layer after the last stage
        ("test_vit", {"depth": 12}),
    ],
)
@pytest.mark.parametrize("views", ["one", "flip"])
def test_the_last_features_are_those_of_the_network(name: str, options: dict[str, int], views: str) -> None:
    side = 160 if name == "test_vit" else 32
    network = create_network(name, 3, options=options, views=views, image_size=side).eval()
    deep = at_depths(network)
    images = torch.randn(2, 3, side, side)
    with torch.no_grad():
        features, own = deep.mean_features(images), network.mean_features(images)
    assert features.shape == (2, deep.num_features)
    assert own.shape[1] < features.shape[1] <= own.shape[1] + (STAGES * 2 + 3 * QUARTERED) * CHANNELS
    torch.testing.assert_close(features[:, -network.num_features :], own)
    assert torch.isfinite(features).all()


def test_stages_are_summarised_as_a_whole_and_the_last_ones_by_quarters() -> None:
    network = create_network("test_resnet", 3).eval()
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        stages = network.backbone.forward_intermediates(images)[1]  # type: ignore[operator]
        features = at_depths(network).features(images)
    first, last = stages[0], stages[-1]
    width = first.shape[1]
    torch.testing.assert_close(features[:, :width], first.mean(dim=(2, 3)))
    torch.testing.assert_close(features[:, width : 2 * width], first.flatten(2).std(dim=2, correction=0))
    width = last.shape[1]
    quarters = features[:, : -network.num_features][:, -5 * width : -width].unflatten(1, (4, width))
    assert last.shape[-2:] == (2, 2), "a quarter is one position"
    torch.testing.assert_close(quarters, last.flatten(2).transpose(1, 2))


def test_modes_are_those_of_the_network_and_others_stay_as_they_are() -> None:
    network = create_network("test_resnet", 3).train()
    network.freeze(True)
    deep = at_depths(network)
    assert (deep.training, deep.frozen) == (True, True)
    assert not network.backbone.training
    plain = create_network("cifarnet", 3, image_size=32)  # timm cannot look into it
    assert at_depths(plain) is plain
    unsure = at_depths(create_network("test_resnet", 3, views="where_unsure"))
    assert unsure.architecture.views == "one"
