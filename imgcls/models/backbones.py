"""Build the network that is trained, exported and served: a timm backbone with a head of imgcls."""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import imgcls.models.cifarnet  # noqa: F401 - registers its networks with timm
from imgcls.errors import UserError, first_line, nearest
from imgcls.images.preprocessing import Size, sides
from imgcls.models.architecture import Architecture
from imgcls.models.choices import STEMS, VIEWS
from imgcls.models.ensemble import Backbones
from imgcls.models.heads import Head, Linear, head_from_dict
from imgcls.models.hub import single_attempt
from imgcls.models.network import Network, width_of
from imgcls.models.weights import load_weights
from imgcls.system.checks import check_value, choice

log = logging.getLogger(__name__)

DRAWS = (torch.ops.aten.normal_, torch.ops.aten.uniform_, torch.ops.aten.erfinv_)  # the last for a truncated normal


def create_network(
    name: str,
    num_classes: int,
    *,
    pretrained: bool = False,
    weights: Path | None = None,
    class_names: Sequence[str] | None = None,
    stem: str = "standard",
    head: Head | None = None,
    drop_rate: float = 0.0,
    drop_path_rate: float = 0.0,
    image_size: Size | None = None,
    options: Mapping[str, Any] | None = None,
    views: str = "one",
    in_channels: int = 3,
) -> Network:
    """Build a network around the timm model `name`.

    Args:
        name: any classifier of timm, with or without a weights tag (`resnet50.a1_in1k`).
        num_classes: number of classes, C.
        pretrained: download timm's weights of the backbone.
        weights: read weights from this file or run folder instead, see `imgcls.models.weights`.
        class_names: in the order of the logits; the head of weights that are known to be for others is not loaded.
        head: maps features to logits; a linear layer by default.
        stem, drop_rate, drop_path_rate, image_size, options, views, in_channels: see
            `imgcls.models.architecture.Architecture`.

    Raises:
        UserError: unknown model, weights that cannot be loaded or do not fit, a stem that cannot be made small.
    """
    check_value("model.stem", stem, choice(*STEMS))
    check_value("model.views", views, choice(*VIEWS))
    architecture = Architecture(
        name=name.partition(".")[0],
        num_classes=num_classes,
        stem=stem,
        head=(head or Linear()).as_dict(),
        drop_rate=drop_rate,
        drop_path_rate=drop_path_rate,
        image_size=image_size,
        options=dict(options or {}),
        views=views,
        in_channels=in_channels,
    )
    network = network_from_architecture(architecture, name=name, pretrained=pretrained)
    if stem == "small" and pretrained:
        log.info("model.stem=small: a first convolution with a smaller kernel starts from random weights.")
    if weights is not None:
        load_weights(network, weights, class_names)
    if image_size is not None:
        _check_image_size(network, image_size)
    return network


def network_from_architecture(
    architecture: Architecture, *, name: str | None = None, pretrained: bool = False
) -> Network:
    """The network that `architecture` describes, with timm's weights of the backbone if `pretrained`.

    `name` is that of the timm model with the tag of its weights; None: without a tag.
    """
    name = name or architecture.name
    options: dict[str, Any] = {**timm_options(architecture), "num_classes": 0}
    rates = {"drop_rate": architecture.drop_rate, "drop_path_rate": architecture.drop_path_rate}
    options |= {rate: value for rate, value in rates.items() if value}
    backbones = [_create_backbone(name, pretrained, options) for _ in range(architecture.backbones)]
    if architecture.stem == "small":
        for backbone in backbones:
            _make_stem_small(backbone, name)
    backbone = backbones[0] if architecture.backbones == 1 else Backbones(backbones)
    head = head_from_dict(architecture.head)
    return Network(backbone, head(width_of(backbone), architecture.num_classes), architecture)


def network_with_weights(architecture: Architecture, state: Mapping[str, Tensor]) -> Network:
    """The network that `architecture` describes with the weights `state`; none are drawn first, which takes longer.

    Raises RuntimeError if `state` has other weights than the network.
    """
    with _Undrawn():
        network = network_from_architecture(architecture)
    network.load_state_dict(state)
    return network


class _Undrawn(TorchDispatchMode):
    """Parameters are not filled with random numbers; buffers are, as they need not be in files."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func.overloadpacket in DRAWS and isinstance(args[0], nn.Parameter):
            return args[0]
        return func(*args, **(kwargs or {}))


def timm_options(architecture: Architecture) -> dict[str, Any]:
    """The arguments of `timm.create_model` that decide the layers of the backbone."""
    options = dict(architecture.options)
    if architecture.in_channels != 3:
        options["in_chans"] = architecture.in_channels  # timm adapts pretrained weights
    config = timm.get_pretrained_cfg(architecture.name, allow_unregistered=True)
    if architecture.image_size is not None and config is not None and config.fixed_input_size:
        options["img_size"] = architecture.image_size
    return options


def check_pretrained(name: str) -> None:
    """Load timm's weights of `name`, which are in the hub's cache afterwards. Raises UserError where that fails."""
    _create_backbone(name, True, {"num_classes": 0})


@torch.no_grad()
def network_of(model: nn.Module) -> Network:
    """The network with the layers and weights of a classifier that `timm.create_model` has made.

    Raises UserError for another module, or a model made with arguments that change its layers.
    """
    name = (getattr(model, "pretrained_cfg", None) or {}).get("architecture")
    layer: Any = model.get_classifier() if hasattr(model, "get_classifier") else None  # type: ignore[operator]
    if name is None or not isinstance(layer, nn.Linear):
        raise UserError(
            f"{type(model).__name__} is no classifier of timm with a linear layer at its end. "
            "Use imgcls.models.backbones.create_network(name, num_classes)."
        )
    drop_rate = float(getattr(model, "drop_rate", 0.0) or 0.0)
    network = network_from_architecture(Architecture(name=str(name), num_classes=layer.out_features))
    backbone: Any = copy.deepcopy(model)
    backbone.reset_classifier(0)
    try:
        network.backbone.load_state_dict(backbone.state_dict())
    except RuntimeError as error:
        raise UserError(
            f"This {name} has other layers than timm.create_model({str(name)!r}). "
            "Use imgcls.models.backbones.create_network(name, num_classes, options={…})."
        ) from error
    last = next(module for module in reversed(list(network.head.modules())) if isinstance(module, nn.Linear))
    last.load_state_dict(layer.state_dict())
    if drop_rate:
        log.warning("The dropout of this %s, %g, is left out: give it to create_network(drop_rate=…).", name, drop_rate)
    return network


@torch.no_grad()
def _check_image_size(network: Network, image_size: Size) -> None:
    """Raise UserError if the network cannot process images of this size."""
    training = network.training
    try:
        network.eval()(torch.zeros(1, network.architecture.in_channels, *sides(image_size)))
    except (RuntimeError, AssertionError, ValueError) as error:
        name, stem = network.architecture.name, network.architecture.stem
        with_stem = " with model.stem=small" if stem == "small" else ""
        raise UserError(
            f"{name}{with_stem} cannot process images of data.image_size={image_size} ({first_line(error)}). "
            "Choose another size, stem or model."
        ) from error
    finally:
        network.train(training)


def _create_backbone(name: str, pretrained: bool, options: dict[str, Any]) -> nn.Module:
    if not timm.is_model(name.partition(".")[0]):
        raise UserError(f"model.name={name}: timm has no model of this name. {nearest(name, timm.list_models())}")
    if not pretrained:
        return _build(name, options)
    if not timm.get_pretrained_cfg(name, allow_unregistered=True):
        raise UserError(f"timm has no pretrained weights for {name}. Use model.pretrained=false or model.weights=FILE.")
    try:
        with single_attempt():
            return timm.create_model(name, pretrained=True, **options)
    except Exception as error:
        _build(name, options)  # raises where the options are the problem, not the download
        raise UserError(
            f"The pretrained weights of {name} cannot be loaded ({first_line(error)}). "
            "Set model.weights=FILE, or train from random weights with model.pretrained=false."
        ) from error


def _build(name: str, options: dict[str, Any]) -> nn.Module:
    try:
        return timm.create_model(name, pretrained=False, **options)
    except (TypeError, ValueError, AssertionError, RuntimeError) as error:
        raise UserError(f"timm cannot build {name} with {options}: {first_line(error)}") from error


def _make_stem_small(backbone: nn.Module, name: str) -> None:
    """Remove the downsampling of the first convolution and the pooling after it, in place.

    A kernel larger than 3x3 is replaced by a new 3x3 one, as usual for CIFAR (He et al. 2016, 4.2).
    """
    path = getattr(backbone, "default_cfg", {}).get("first_conv")
    conv = dict(backbone.named_modules()).get(path) if isinstance(path, str) else None
    if not isinstance(path, str) or not isinstance(conv, nn.Conv2d) or conv.stride != (2, 2):
        raise UserError(f"model.stem=small: {name} has no strided stem to make small. Use model.stem=standard.")
    if max(conv.kernel_size) > 3:
        small = nn.Conv2d(conv.in_channels, conv.out_channels, 3, padding=1, bias=conv.bias is not None)
        nn.init.kaiming_normal_(small.weight, mode="fan_out", nonlinearity="relu")
        parent, _, attribute = path.rpartition(".")
        setattr(backbone.get_submodule(parent), attribute, small)
    else:
        conv.stride = (1, 1)
    if isinstance(getattr(backbone, "maxpool", None), nn.Module):
        backbone.maxpool = nn.Identity()
