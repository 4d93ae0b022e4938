"""torchvision's weights in timm's networks: random ones give the same logits, family by family."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torchvision import models
from torchvision.models.convnext import CNBlockConfig
from torchvision.models.swin_transformer import PatchMergingV2, SwinTransformerBlockV2

from imgcls.models.backbones import create_network

CLASSES = 5
STAGES = [CNBlockConfig(24, 48, 1), CNBlockConfig(48, 96, 1), CNBlockConfig(96, 192, 2), CNBlockConfig(192, None, 1)]
SWIN: dict[str, Any] = {"embed_dim": 24, "depths": [2, 2], "num_heads": [2, 4]}
CASES: dict[str, tuple[Callable[..., nn.Module], str, dict[str, Any], int]] = {
    "resnet": (models.resnet18, "resnet18", {}, 64),
    "densenet": (models.densenet121, "densenet121", {}, 32),
    "efficientnet": (models.efficientnet_b0, "efficientnet_b0", {}, 64),
    "efficientnetv2": (models.efficientnet_v2_s, "tf_efficientnetv2_s", {"bn_eps": 1e-3, "pad_type": ""}, 64),
    "mobilenetv2": (models.mobilenet_v2, "mobilenetv2_100", {}, 64),
    "mobilenetv3": (models.mobilenet_v3_small, "mobilenetv3_small_100", {"bn_eps": 1e-3}, 64),
    "mnasnet": (models.mnasnet0_5, "mnasnet_050", {}, 64),
    "regnet": (models.regnet_y_400mf, "regnety_004", {}, 64),
    "convnext": (
        partial(models.ConvNeXt, STAGES),
        "convnext_tiny",
        {"depths": [1, 1, 2, 1], "dims": [24, 48, 96, 192]},
        64,
    ),
    "vit": (
        partial(models.VisionTransformer, 32, 16, num_layers=2, num_heads=3, hidden_dim=192, mlp_dim=768),
        "vit_tiny_patch16_224",
        {"depth": 2},
        32,
    ),
    "swin": (
        partial(models.SwinTransformer, [4, 4], window_size=[7, 7], **SWIN),
        "swin_tiny_patch4_window7_224",
        SWIN,
        56,
    ),
    "swinv2": (
        partial(
            models.SwinTransformer,
            [4, 4],
            window_size=[8, 8],
            block=SwinTransformerBlockV2,
            downsample_layer=PatchMergingV2,
            **SWIN,
        ),
        "swinv2_tiny_window8_256",
        SWIN,
        64,
    ),
}


def classifier(network: nn.Module) -> nn.Linear:
    return [layer for layer in network.modules() if isinstance(layer, nn.Linear)][-1]


@torch.no_grad()
def randomised(build: Callable[..., nn.Module], side: int) -> nn.Module:
    """A network in which each tensor matters, those that begin as ones or zeros too."""
    torch.manual_seed(0)
    network = build(num_classes=CLASSES)
    for name, value in network.named_parameters():
        if value.ndim == 1 or name.endswith(("layer_scale", "class_token")):
            value.add_(torch.randn_like(value) * 0.2)
    classifier(network).weight.normal_()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    network.train()(torch.randn(4, 3, side, side))
    return network.eval()


@pytest.mark.parametrize("family", CASES)
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@torch.no_grad()
def test_the_logits_are_the_same(family: str, suffix: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    build, name, options, side = CASES[family]
    theirs = randomised(build, side)
    file = tmp_path / f"w{suffix}"
    (save_file if suffix == ".safetensors" else torch.save)(theirs.state_dict(), file)
    size = side if "vit" in name or "swin" in name else None
    ours = create_network(name, CLASSES, weights=file, options=options, image_size=size).eval()
    ours.head[-1].load_state_dict(classifier(theirs).state_dict())
    images = torch.randn(3, 3, side, side)
    expected = theirs(images)
    assert expected.std(dim=0).mean() > 0.1  # they depend on the image
    torch.testing.assert_close(ours(images), expected, rtol=1e-3, atol=1e-4)
    assert "model.options" not in caplog.text


@torch.no_grad()
def test_vgg_has_its_hidden_layers(tmp_path: Path) -> None:
    theirs = models.VGG(models.vgg.make_layers(models.vgg.cfgs["A"], batch_norm=False), CLASSES, init_weights=False)
    torch.save(theirs.eval().state_dict(), tmp_path / "w.pth")
    ours = create_network("vgg11", CLASSES, weights=tmp_path / "w.pth").eval()
    ours.head[-1].load_state_dict(classifier(theirs).state_dict())
    images = torch.randn(1, 3, 224, 224)
    torch.testing.assert_close(ours(images), theirs(images), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("build", "name", "advice"),
    [
        (models.mobilenet_v3_small, "mobilenetv3_small_100", "{bn_eps: 0.001}"),
        (models.efficientnet_b0, "tf_efficientnet_b0", "{bn_eps: 1e-05, pad_type: ''}"),
    ],
)
def test_a_network_that_computes_differently_is_reported(
    build: Callable[..., nn.Module], name: str, advice: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    torch.save(build(num_classes=CLASSES).state_dict(), tmp_path / "w.pth")
    create_network(name, CLASSES, weights=tmp_path / "w.pth")
    assert f"'model.options={advice}'" in caplog.text
