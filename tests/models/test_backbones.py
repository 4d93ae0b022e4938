"""Any timm backbone: its stem, freezing, and the errors for backbones that cannot be built."""

from typing import Any

import pytest
import torch
from torch import nn

from imgcls.errors import UserError
from imgcls.models.backbones import create_network, network_from_architecture, network_with_weights
from imgcls.models.heads import Linear, Mlp

from .helpers import CLASSES, network


@pytest.mark.parametrize(
    "name", ["test_resnet", "test_vit", "test_efficientnet", "test_convnext", "mobilenetv3_small_050", "ghostnet_100"]
)
def test_every_family_returns_logits_and_features(name: str) -> None:
    net = create_network(name, CLASSES, head=Mlp(hidden=[6]), image_size=64).eval()
    images = torch.randn(2, 3, 64, 64)
    assert net(images).shape == (2, CLASSES)
    assert torch.equal(net.head(net.features(images)), net(images))


def test_the_architecture_rebuilds_the_network() -> None:
    net = create_network("test_resnet", CLASSES, stem="small", head=Mlp(hidden=[6]), drop_rate=0.1, drop_path_rate=0.2)
    rebuilt = network_from_architecture(net.architecture)
    rebuilt.load_state_dict(net.state_dict())
    assert str(rebuilt) == str(net)


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "swin_s3_tiny_224"])
def test_a_network_with_weights_draws_none(name: str) -> None:
    torch.manual_seed(0)
    net = create_network(name, CLASSES, image_size=64).eval()
    before = torch.get_rng_state()
    copy = network_with_weights(net.architecture, net.state_dict()).eval()
    assert torch.equal(torch.get_rng_state(), before)
    images = torch.rand(2, 3, 64, 64)
    assert torch.equal(copy(images), net(images))
    with pytest.raises(RuntimeError, match="Missing key"):
        network_with_weights(net.architecture, {})


def test_buffers_that_are_in_no_file_are_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    class Projection(nn.Linear):
        def __init__(self, width: int, classes: int) -> None:
            super().__init__(width, classes)
            drawn = torch.empty(3).normal_(generator=torch.Generator().manual_seed(0))
            self.register_buffer("drawn", drawn, persistent=False)

    class Projecting(Linear):
        def __call__(self, in_features: int, num_classes: int) -> nn.Module:
            return Projection(in_features, num_classes)

    monkeypatch.setattr("imgcls.models.backbones.head_from_dict", lambda _: Projecting())
    net = create_network("test_resnet", CLASSES, head=Projecting())
    copy = network_with_weights(net.architecture, net.state_dict())
    assert torch.equal(copy.head.drawn, net.head.drawn)


def test_a_small_stem_keeps_the_resolution() -> None:
    def downsampling(stem: str) -> int:
        net = create_network("resnet18", 2, stem=stem)
        return 64 // net.backbone.forward_features(torch.zeros(1, 3, 64, 64)).shape[-1]

    assert downsampling("standard") == 32
    assert downsampling("small") == 8


def test_a_small_stem_keeps_a_kernel_that_fits() -> None:
    standard, small = (network("mobilenetv3_small_050", stem=stem).backbone for stem in ("standard", "small"))
    assert torch.equal(standard.conv_stem.weight, small.conv_stem.weight)
    assert small.conv_stem.stride == (1, 1)


def test_an_architecture_without_a_strided_stem_is_refused() -> None:
    with pytest.raises(UserError, match=r"model\.stem=small: test_vit has no strided stem"):
        create_network("test_vit", 2, stem="small")


def test_an_image_size_that_does_not_fit_is_refused() -> None:
    with pytest.raises(UserError, match=r"data\.image_size=16"):
        create_network("inception_v3", 2, image_size=16)


def test_an_unknown_model_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(UserError, match="resnet18"):
        create_network("resnet19", 2)


def test_dropout_and_stochastic_depth_reach_the_backbone() -> None:
    net = create_network("resnet18", 2, drop_rate=0.3, drop_path_rate=0.2)
    assert net.backbone.drop_rate == 0.3
    assert any(getattr(module, "drop_prob", 0) > 0 for module in net.modules())


def test_a_frozen_backbone_stays_in_evaluation_mode_and_computes_no_gradients() -> None:
    net = network()
    net.freeze(True)
    net.train()
    norms = [module for module in net.backbone.modules() if isinstance(module, nn.BatchNorm2d)]
    assert norms
    assert not any(norm.training for norm in norms)
    assert net.head.training
    before = {name: value.clone() for name, value in net.backbone.state_dict().items()}
    features = net.features(torch.randn(4, 3, 32, 32) + 5)
    assert not features.requires_grad  # no graph was built
    net(torch.randn(4, 3, 32, 32)).sum().backward()
    assert all(parameter.grad is None for parameter in net.backbone.parameters())
    assert all(torch.equal(value, before[name]) for name, value in net.backbone.state_dict().items())
    net.freeze(False)
    assert all(norm.training for norm in norms)


# ---- weights from the hub


@pytest.fixture
def broken_network(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Every connection fails at once; the attempts are counted."""
    import socket

    from huggingface_hub import constants

    attempts: list[Any] = []

    def refuse(*address: Any, **options: Any) -> Any:
        attempts.append(address)
        raise OSError("Network is unreachable")

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    return attempts


def test_without_a_network_the_error_says_what_to_do_after_few_attempts(
    broken_network: list[Any], monkeypatch, tmp_path
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(
        UserError, match=r"weights of resnet18 cannot be .*model\.weights=FILE.*model\.pretrained=false"
    ) as raised:
        create_network("resnet18", 2, pretrained=True)
    assert 0 < len(broken_network) < 4
    assert len(str(raised.value).splitlines()) <= 2
    assert len(str(raised.value)) < 500
    assert constants.HF_HUB_OFFLINE is False
