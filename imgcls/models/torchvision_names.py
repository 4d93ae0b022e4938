"""Rename the weights of torchvision's networks as those of timm's are named."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn

Rules = list[tuple[str, str | Callable[[re.Match[str]], str]]]

VIT: Rules = [
    (r"^class_token$", "cls_token"),
    (r"^conv_proj\.", "patch_embed.proj."),
    (r"^encoder\.pos_embedding$", "pos_embed"),
    (r"^encoder\.ln\.", "norm."),
    (r"^encoder\.layers\.encoder_layer_(\d+)\.", r"blocks.\1."),
    (r"\.ln_(\d)\.", r".norm\1."),
    (r"\.self_attention\.in_proj_", ".attn.qkv."),
    (r"\.self_attention\.out_proj\.", ".attn.proj."),
    (r"\.mlp\.(0|linear_1)\.", ".mlp.fc1."),
    (r"\.mlp\.(3|linear_2)\.", ".mlp.fc2."),
    (r"^heads\.", "head."),
]
CONVNEXT: Rules = [
    (r"^features\.0\.", "stem."),
    (r"^features\.([1357])\.", lambda found: f"stages.{int(found[1]) // 2}.blocks."),
    (r"^features\.([246])\.", lambda found: f"stages.{int(found[1]) // 2}.downsample."),
    (r"\.layer_scale$", ".gamma"),
    (r"\.block\.0\.", ".conv_dw."),
    (r"\.block\.2\.", ".norm."),
    (r"\.block\.3\.", ".mlp.fc1."),
    (r"\.block\.5\.", ".mlp.fc2."),
    (r"^classifier\.0\.", "head.norm."),
    (r"^classifier\.2\.", "head.fc."),
]
SWIN: Rules = [
    (r"^features\.0\.0\.", "patch_embed.proj."),
    (r"^features\.0\.2\.", "patch_embed.norm."),
    (r"^features\.([1357])\.", lambda found: f"layers.{int(found[1]) // 2}.blocks."),
    (r"^features\.([246])\.", lambda found: f"layers.{int(found[1]) // 2}.downsample."),
    (r"\.mlp\.0\.", ".mlp.fc1."),
    (r"\.mlp\.3\.", ".mlp.fc2."),
    (r"^head\.", "head.fc."),
]
REGNET: Rules = [
    (r"^trunk_output\.block(\d)\.block\d-(\d+)\.", lambda found: f"s{found[1]}.b{int(found[2]) + 1}."),
    (r"\.proj\.", ".downsample."),
    (r"\.f\.se\.", ".se."),
    (r"\.f\.a\.", ".conv1."),
    (r"\.f\.b\.", ".conv2."),
    (r"\.f\.c\.", ".conv3."),
    (r"^(stem|.*\.(?:conv\d|downsample))\.0\.", r"\1.conv."),
    (r"^(stem|.*\.(?:conv\d|downsample))\.1\.", r"\1.bn."),
    (r"^fc\.", "head.fc."),
]
VGG: Rules = [(r"^classifier\.0\.", "pre_logits.fc1."), (r"^classifier\.3\.", "pre_logits.fc2.")]
RULES = {
    "VisionTransformer": VIT,
    "ConvNeXt": CONVNEXT,
    "SwinTransformer": SWIN,
    "SwinTransformerV2": SWIN,
    "RegNet": REGNET,
    "VGG": VGG,
}
"""By the name of timm's class, what to replace in torchvision's names, in this order."""

IN_ORDER = ("EfficientNet", "MobileNetV3")
"""Classes of timm whose modules, and torchvision's, are numbered in the order of the computation."""
SMALL_EPS, LARGE_EPS = 1e-5, 1e-3
COMPUTED = ("relative_position_index", "relative_coords_table", "num_batches_tracked")


def from_torchvision(state: Mapping[str, Tensor], backbone: nn.Module) -> dict[str, Tensor]:
    """`state` with timm's names, for `backbone`; what has no counterpart keeps its name.

    Covers torchvision's EfficientNet, MobileNet, MNASNet, ConvNeXt, VisionTransformer, SwinTransformer, RegNet and VGG;
    its ResNet, DenseNet and Inception have timm's names.
    """
    kind = type(backbone).__name__
    state = {name: value for name, value in state.items() if not name.endswith(COMPUTED)}
    if kind in IN_ORDER:
        renamed = _in_order(state, backbone)
    else:
        renamed = {_replace(name, RULES.get(kind, [])): value for name, value in state.items()}
    if kind == "SwinTransformerV2":
        renamed = _split_biases(renamed)
    current = backbone.state_dict()
    for name, value in renamed.items():
        if name in current and value.shape != current[name].shape and value.numel() == current[name].numel():
            renamed[name] = value.reshape(current[name].shape)  # linear layers that timm has as 1x1 convolutions
    return renamed


def different_options(backbone: nn.Module, name: str) -> str:
    """The `model.options` that make `backbone`, timm's model `name`, compute what torchvision's does; '' if it does."""
    if type(backbone).__name__ not in IN_ORDER:
        return ""
    large = re.search(r"mobilenetv3|efficientnet_b[5-7]|efficientnetv2", name) is not None
    eps = LARGE_EPS if large else SMALL_EPS
    norms = [module for module in backbone.modules() if isinstance(module, nn.BatchNorm2d)]
    parts = [f"bn_eps: {eps:g}"] if any(module.eps != eps for module in norms) else []
    if any(type(module).__name__ == "Conv2dSame" for module in backbone.modules()):
        parts.append("pad_type: ''")
    return f"{{{', '.join(parts)}}}" if parts else ""


def _replace(name: str, rules: Rules) -> str:
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


def _in_order(state: Mapping[str, Tensor], backbone: nn.Module) -> dict[str, Tensor]:
    """`state` with the modules renamed pair by pair, as far as the pairs have the same tensors."""
    theirs = _modules(sorted(state, key=_natural))
    ours = _modules([name for name in backbone.state_dict() if not name.endswith(COMPUTED)])
    renamed: dict[str, Any] = dict(state)
    for (their_module, their_leaves), (our_module, our_leaves) in zip(theirs, ours, strict=False):
        if sorted(their_leaves) != sorted(our_leaves):
            break
        for leaf in their_leaves:
            renamed[f"{our_module}.{leaf}"] = renamed.pop(f"{their_module}.{leaf}")
    return renamed


def _modules(names: list[str]) -> list[tuple[str, list[str]]]:
    """Each module with the names of its tensors."""
    return [
        (module, [name.rpartition(".")[2] for name in group])
        for module, group in groupby(names, key=lambda name: name.rpartition(".")[0])
    ]


def _natural(name: str) -> list[tuple[int, str]]:
    """Sorts by module, with numbers by their value, and the classifier last."""
    parts = name.rpartition(".")[0].split(".")
    return [(int(parts[0] == "classifier"), ""), *((int(part) if part.isdigit() else -1, part) for part in parts)]


def _split_biases(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Swin V2 has no bias of the keys: timm stores those of queries and values, torchvision all three."""
    split: dict[str, Tensor] = {}
    for name, value in state.items():
        if name.endswith(".attn.qkv.bias"):
            module = name.removesuffix("qkv.bias")
            split[f"{module}q_bias"], _, split[f"{module}v_bias"] = torch.chunk(value, 3)
        else:
            split[name] = value
    return split
