"""Low-rank adapters (LoRA, Hu et al. 2021): two thin matrices beside each frozen layer of the backbone are trained.

While a network trains, its layers are wrapped by `peft`. Everything else sees ordinary weights: checkpoints hold the
merged ones, with the adapters beside them for the training that resumes, and the exported model has no adapters.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from imgcls.errors import UserError
from imgcls.models.network import Network
from imgcls.system.extras import need

SCALING = 2.0
"""By which the product of the two matrices is multiplied, whatever its rank."""
STATE, ADAPTED = "state_dict", "adapted_state_dict"
_EXCITATION = re.compile(r"(^|\.)(se|attn_se|se_module)(\.|$)")


def add_adapters(network: Network, rank: int, shape: Iterable[int], seed: int = 0) -> None:
    """Freeze the backbone of `network`, and wrap its layers with adapters that change nothing yet.

    Args:
        network: changed in place.
        rank: of the adapters.
        shape: height and width of its images, px.
        seed: of the random matrices; those beside them are zero.

    Raises:
        UserError: `peft` is not installed, or there are no layers to adapt.
    """
    peft = need("peft", "lora", "model.adapter=lora")
    names = targets(network.backbone, rank, shape)
    if not names:
        raise UserError(
            f"model.adapter=lora: {network.architecture.name} has no layers wider than "
            f"model.adapter_rank={rank}. Use a lower rank, or model.adapter=none."
        )
    options = peft.LoraConfig(
        r=rank, lora_alpha=SCALING * rank, target_modules="|".join(map(re.escape, names)), lora_dropout=0.0, bias="none"
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        peft.inject_adapter_in_model(options, network.backbone)
    network.dimensions = {name: parameter.ndim for name, parameter in network.named_parameters()}


@torch.no_grad()
def targets(backbone: nn.Module, rank: int, shape: Iterable[int]) -> list[str]:
    """The names of the layers that adapters are put beside, of any family of timm.

    Of transformers and mixers the linear layers of attention and MLPs, of convolutional networks the convolutions that
    mix channels (not depthwise ones, nor squeeze and excitation); never the first layer, which sees pixels. Layers with
    weights that are used without a call, as the queries of BEiT, are left out: an adapter would do nothing.
    """
    first = getattr(backbone, "default_cfg", {}).get("first_conv") or ()
    stem = {first} if isinstance(first, str) else set(first)
    candidates = {
        name: module
        for name, module in backbone.named_modules()
        if _width(module) > rank and name not in stem and not _EXCITATION.search(name)
    }
    called: set[str] = set()
    hooks = [
        module.register_forward_hook(lambda *_, name=name: called.add(name)) for name, module in candidates.items()
    ]
    training = backbone.training
    parameter = next(backbone.parameters())
    channels = next((layer.in_channels for name, layer in backbone.named_modules() if name in stem), 3)
    try:
        backbone.eval()(torch.zeros(1, channels, *shape, device=parameter.device, dtype=parameter.dtype))
    finally:
        backbone.train(training)
        for hook in hooks:
            hook.remove()
    return [name for name in candidates if name in called]


def _width(module: nn.Module) -> int:
    """The smaller one of the inputs and outputs of a layer that can be adapted; 0 for other modules."""
    if type(module) is nn.Linear:
        return min(module.in_features, module.out_features)
    if isinstance(module, nn.Conv2d) and module.groups == 1:
        return min(module.in_channels, module.out_channels)
    return 0


def merge_adapters(network: Network) -> None:
    """Add the adapters to the weights of `network`, which then has its ordinary layers; without any, do nothing."""
    adapted = [name for name, module in network.backbone.named_modules() if hasattr(module, "lora_A")]
    for name in adapted:
        parent, _, attribute = name.rpartition(".")
        layer: Any = network.backbone.get_submodule(name)
        layer.merge()
        setattr(network.backbone.get_submodule(parent), attribute, layer.get_base_layer())
    if adapted:
        network.backbone.requires_grad_(True)
        network.dimensions = {name: parameter.ndim for name, parameter in network.named_parameters()}


def merged_checkpoint(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """`checkpoint` with ordinary weights in `state_dict`.

    One from which a training resumes also has those of the adapted layers, in `adapted_state_dict`.
    """
    state = checkpoint.get(STATE, {})
    adapted = {name: value for name, value in state.items() if _layer_of(name) is not None}
    if not adapted:
        return dict(checkpoint)
    resumes = "optimizer_states" in checkpoint
    return {**checkpoint, STATE: merged_state(state), **({ADAPTED: adapted} if resumes else {})}


def adapted_checkpoint(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """The checkpoint that `merged_checkpoint` was given."""
    adapted = checkpoint.get(ADAPTED, {})
    merged = {name.replace(".base_layer.", ".") for name in adapted}
    state = {name: value for name, value in checkpoint.get(STATE, {}).items() if name not in merged}
    rest = {name: value for name, value in checkpoint.items() if name != ADAPTED}
    return {**rest, STATE: {**state, **adapted}} if adapted else rest


@torch.no_grad()
def merged_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The ordinary weights of an adapted network, by their ordinary names, as `merge_adapters` computes them."""
    merged = {}
    for name, value in state.items():
        layer = _layer_of(name)
        if layer is None:
            merged[name] = value
        elif name.endswith(".base_layer.weight"):
            down, up = (state[f"{layer}.lora_{part}.default.weight"].float() for part in "AB")
            delta = (up.flatten(1) @ down.flatten(1)).reshape(value.shape) * SCALING
            merged[f"{layer}.weight"] = (value.float() + delta).to(value.dtype)
        elif ".base_layer." in name:
            merged[name.replace(".base_layer.", ".")] = value
    return merged


def _layer_of(name: str) -> str | None:
    """The adapted layer that the value of this name belongs to; None if it belongs to another one."""
    match = re.match(r"(.+?)\.(base_layer|lora_A|lora_B)\.", name)
    return match[1] if match else None
