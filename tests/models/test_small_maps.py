"""Convolutions of small images: the same outputs and gradients as without, and only where they can be had."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from imgcls.models.backbones import create_network
from imgcls.models.small_maps import SmallMapConv2d, use_linear_layers_for_small_maps


@pytest.fixture
def linear(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The shapes of what goes through a linear layer."""
    found, compute = [], nn.functional.linear

    def watch(values: Tensor, *rest: Tensor) -> Tensor:
        found.append(tuple(values.shape))
        return compute(values, *rest)

    monkeypatch.setattr("imgcls.models.small_maps.F.linear", watch)
    return found


def results(layer: nn.Conv2d, images: Tensor) -> list[Tensor]:
    """The output, and the gradients of the input and the weights."""
    images = images.clone().requires_grad_()
    output = layer(images)
    (output * torch.arange(1, output.numel() + 1).view_as(output)).sum().backward()
    gradients = [images.grad, *(parameter.grad for parameter in layer.parameters())]
    layer.zero_grad()
    return [output, *(gradient.clone() for gradient in gradients if gradient is not None)]


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(
    ("height", "width", "kernel", "stride", "padding"),
    [
        (1, 1, 3, 1, 1),
        (1, 1, 1, 1, 0),
        (1, 1, 7, 2, 3),
        (2, 2, 3, 2, 1),
        (2, 2, 1, 2, 0),
        (3, 3, 3, 1, 0),
        (4, 4, 3, 2, 0),
        (3, 2, (3, 2), 1, 0),
        (1, 2, (3, 5), (1, 2), (1, 2)),
        (2, 2, 3, 1, 1),
        (1, 2, 3, 1, 1),
        (3, 3, 5, 1, 2),
        (4, 3, 7, (2, 1), 3),
    ],
)
def test_a_kernel_on_the_whole_image_is_a_linear_layer(
    height: int, width: int, kernel: int, stride: int, padding: int, layout: torch.memory_format, linear: list[object]
) -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(5, 4, kernel, stride, padding, bias=width == 2).to(memory_format=layout)
    images = torch.randn(3, 5, height, width).to(memory_format=layout)
    expected = results(layer, images)
    assert not linear
    use_linear_layers_for_small_maps(layer)
    found = results(layer, images)
    several = found[0].shape[2:] != (1, 1)
    assert len(linear) == (0 if several and layout == torch.contiguous_format else 1)
    assert found[0].is_contiguous(memory_format=layout)
    for first, second in zip(expected, found, strict=True):
        torch.testing.assert_close(first, second, rtol=1e-5, atol=1e-5)


def test_other_convolutions_stay(linear: list[object]) -> None:
    torch.manual_seed(0)
    layers = nn.Sequential(
        nn.Conv2d(4, 4, 3, groups=4, padding=1),
        nn.Conv2d(4, 4, 3, dilation=2, padding=2),
        nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"),
        nn.Conv2d(4, 4, 3, padding="same"),
    )
    use_linear_layers_for_small_maps(layers)
    assert not any(isinstance(layer, SmallMapConv2d) for layer in layers)
    layer = nn.Conv2d(4, 4, 3, padding=1).to(memory_format=torch.channels_last)
    use_linear_layers_for_small_maps(layer)
    assert layer(torch.randn(2, 4, 1, 3)).shape == (2, 4, 1, 3), "no kernel covers three pixels at each position"
    assert layer(torch.randn(4, 1, 1)).shape == (4, 1, 1), "an image without a batch"
    layer = nn.Conv2d(4, 4, 3, 2, padding=1).to(memory_format=torch.channels_last)
    use_linear_layers_for_small_maps(layer)
    assert layer(torch.randn(2, 4, 4, 4)).shape == (2, 4, 2, 2), "the positions cover two pixels and three"
    assert not linear
    with pytest.raises(RuntimeError, match="size"):
        SmallMapConv2d(4, 4, 3)(torch.randn(2, 4, 1, 1))


def test_a_network_answers_the_same(linear: list[object]) -> None:
    torch.manual_seed(0)
    network = create_network("test_resnet", 3, image_size=32).eval()
    images, names = torch.randn(2, 3, 32, 32), list(network.state_dict())
    with torch.inference_mode():
        expected = network(images)
        use_linear_layers_for_small_maps(network)
        torch.testing.assert_close(network(images), expected, rtol=1e-5, atol=1e-5)
        assert linear
        with torch.autocast("cpu", torch.bfloat16):
            torch.testing.assert_close(network(images).float(), expected, rtol=0.1, atol=0.1)
    assert list(network.state_dict()) == names
