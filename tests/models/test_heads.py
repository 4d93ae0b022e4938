"""Heads have the configured widths, and are rebuilt from plain values."""

import pytest
import torch
from torch import nn

from imgcls.errors import UserError
from imgcls.models.heads import Linear, Mlp, head_from_dict


def widths(head: nn.Module) -> list[tuple[int, int]]:
    return [(layer.in_features, layer.out_features) for layer in head.modules() if isinstance(layer, nn.Linear)]


def test_hidden_widths_connect_features_and_classes() -> None:
    assert widths(Mlp(hidden=[1000, 100])(2048, 10)) == [(2048, 1000), (1000, 100), (100, 10)]
    assert widths(Mlp(hidden=[])(64, 3)) == [(64, 3)]
    assert widths(Linear()(64, 3)) == [(64, 3)]


@pytest.mark.parametrize("norm", ["none", "batch", "layer"])
@pytest.mark.parametrize("activation", ["relu", "gelu", "silu", "tanh", "identity"])
def test_every_choice_builds_a_working_head(norm: str, activation: str) -> None:
    head = Mlp(hidden=[8], activation=activation, norm=norm, dropout=0.5)(4, 3)
    assert head(torch.zeros(2, 4)).shape == (2, 3)


@pytest.mark.parametrize(
    "head", [Linear(dropout=0.1), Mlp(hidden=[5, 4], activation="gelu", norm="layer", dropout=0.2)]
)
def test_a_head_is_rebuilt_from_plain_values(head: Linear | Mlp) -> None:
    assert head_from_dict(head.as_dict()) == head


@pytest.mark.parametrize("options", [{"hidden": [0]}, {"activation": "rleu"}, {"norm": "bach"}])
def test_invalid_options_are_refused(options: dict) -> None:
    with pytest.raises(UserError, match=r"model\.head\."):
        Mlp(**options)


def test_an_unregistered_kind_of_head_is_refused() -> None:
    with pytest.raises(UserError, match="capsules"):
        head_from_dict({"kind": "capsules"})
