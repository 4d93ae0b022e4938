"""Adapters begin as nothing, train little, and end in ordinary weights."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

pytest.importorskip("peft")

from imgcls.errors import UserError
from imgcls.models.adapters import (
    ADAPTED,
    STATE,
    adapted_checkpoint,
    add_adapters,
    merge_adapters,
    merged_checkpoint,
    targets,
)
from imgcls.models.backbones import create_network
from imgcls.models.network import Network

FAMILIES = {"test_vit": 160, "test_efficientnet": 64, "test_convnext": 64, "test_resnet": 64}


def trained(name: str, size: int) -> tuple[Network, torch.Tensor, torch.Tensor]:
    """A network with adapters after some steps, images, and its logits before."""
    torch.manual_seed(0)
    network = create_network(name, 5).eval()
    images = torch.randn(2, 3, size, size)
    before = network(images).detach()
    add_adapters(network, 4, (size, size))
    assert torch.equal(network(images), before), "an adapter begins as nothing"
    chosen = [parameter for parameter in network.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(chosen, lr=0.02)
    for _ in range(3):
        optimizer.zero_grad()
        network(images).log_softmax(dim=1)[:, 0].sum().neg().backward()
        assert all(parameter.grad is not None for parameter in chosen), "each adapter is used"
        optimizer.step()
    return network, images, before


@pytest.mark.parametrize("name", FAMILIES)
def test_merged_weights_are_ordinary_and_compute_the_same(name: str) -> None:
    network, images, before = trained(name, FAMILIES[name])
    ordinary = create_network(name, 5).eval()
    frozen = {key: value for key, value in network.state_dict().items() if "base_layer" in key}
    adapted = network(images).detach()
    assert (adapted - before).abs().max() > 1e-3
    state = {f"network.{key}": value.clone() for key, value in network.state_dict().items()}
    checkpoint = {STATE: state, "optimizer_states": []}
    assert ADAPTED not in merged_checkpoint({STATE: state}), "of which no training resumes"
    merged = merged_checkpoint(copy.deepcopy(checkpoint))
    ordinary.load_state_dict({key.removeprefix("network."): value for key, value in merged[STATE].items()})
    torch.testing.assert_close(ordinary(images), adapted, atol=1e-4, rtol=1e-4)

    back = adapted_checkpoint(merged)
    assert back.keys() == checkpoint.keys()
    assert back[STATE].keys() == state.keys()
    assert all(torch.equal(value, state[key]) for key, value in back[STATE].items())

    merge_adapters(network)
    assert {key: tuple(value.shape) for key, value in network.state_dict().items()} == {
        key: tuple(value.shape) for key, value in ordinary.state_dict().items()
    }
    for key, value in network.state_dict().items():  # what peft merges, and what is written, are the same bits
        assert torch.equal(value, ordinary.state_dict()[key]), key
    assert all(parameter.requires_grad for parameter in network.parameters())
    assert len(frozen) > 2


def test_checkpoints_without_adapters_stay_as_they_are() -> None:
    state = create_network("test_resnet", 3).state_dict()
    checkpoint = {STATE: dict(state), "epoch": 1}
    assert merged_checkpoint(checkpoint) == checkpoint
    assert adapted_checkpoint(checkpoint) == checkpoint
    assert ADAPTED not in merged_checkpoint(checkpoint)


@pytest.mark.parametrize(
    ("name", "size", "there", "missing"),
    [
        ("test_vit", 160, {"blocks.0.attn.qkv", "blocks.0.mlp.fc1"}, {"patch_embed.proj"}),
        ("test_efficientnet", 64, {"conv_head"}, {"conv_stem", "blocks.3.0.se.conv_reduce", "blocks.3.0.conv_dw"}),
        ("test_resnet", 64, {"layer1.0.conv1"}, {"conv1.0"}),
        ("beit_base_patch16_224", 224, {"blocks.0.attn.proj", "blocks.0.mlp.fc1"}, {"blocks.0.attn.qkv"}),
    ],
)
def test_each_family_has_its_targets(name: str, size: int, there: set[str], missing: set[str]) -> None:
    options = {"depth": 1, "embed_dim": 64, "num_heads": 2} if name.startswith("beit") else {}
    backbone = create_network(name, 2, options=options).backbone
    modules = dict(backbone.named_modules())
    assert (there | missing) <= modules.keys()
    found = set(targets(backbone, 4, (size, size)))
    assert there <= found
    assert not missing & found
    assert all(type(modules[each]) is nn.Linear or modules[each].groups == 1 for each in found)  # type: ignore[union-attr]
    assert backbone.training


def test_at_most_two_percent_of_a_vision_transformer_train() -> None:
    with torch.device("meta"):
        network = create_network("vit_base_patch16_224", 10)
        add_adapters(network, 8, (224, 224))
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in network.parameters()]
    trained = sum(size for size, trains in sizes if trains)
    assert 0.005 < trained / sum(size for size, _ in sizes) < 0.02


def test_a_rank_that_no_layer_has_is_refused() -> None:
    with pytest.raises(UserError, match=r"test_resnet has no layers wider than model.adapter_rank=4000. Use a lower"):
        add_adapters(create_network("test_resnet", 2), 4000, (64, 64))
