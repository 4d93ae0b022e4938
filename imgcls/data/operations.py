"""The operations that augmentation policies choose from, on whole batches with a strength for each image.

Images are float (n, 3, H, W) with values in 0..255; factors are (n,). Results equal torchvision's to within rounding.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def grey(images: Tensor) -> Tensor:
    """Luma (n, 1, H, W), by ITU-R 601; of other channels than red, green and blue their mean."""
    if images.shape[1] != 3:
        return images.mean(1, keepdim=True)
    red, green, blue = images.unbind(1)
    return (0.299 * red + 0.587 * green + 0.114 * blue)[:, None]


def brightness(images: Tensor, factor: Tensor) -> Tensor:
    """Factor 0 gives black, 1 the image."""
    return (images * _each(factor)).clamp_(0, 255)


def color(images: Tensor, factor: Tensor) -> Tensor:
    """Factor 0 gives grey, 1 the image; other channels than red, green and blue have no colour to change."""
    if images.shape[1] != 3:
        return images
    return _blend(grey(images), images, factor)


def contrast(images: Tensor, factor: Tensor) -> Tensor:
    """Factor 0 gives the mean grey, 1 the image."""
    return _blend(grey(images).mean((1, 2, 3), keepdim=True), images, factor)


def sharpness(images: Tensor, factor: Tensor) -> Tensor:
    """Factor 0 gives a smoothed image, 1 the image; its outermost pixels do not change."""
    channels = images.shape[1]
    kernel = images.new_ones(channels, 1, 3, 3)
    kernel[:, :, 1, 1] = 5
    smooth = images.clone()
    smooth[..., 1:-1, 1:-1] = F.conv2d(images, kernel / 13, groups=channels)
    return _blend(smooth, images, factor)


def hue(images: Tensor, turn: Tensor) -> Tensor:
    """Rotate colours by `turn` of a full circle around the grey axis, which keeps the luma."""
    if images.shape[1] != 3:
        return images
    luma = grey(images)
    angle = _each(turn * 2 * torch.pi)
    red, _, blue = (images - luma).split(1, 1)
    # red and blue minus luma span the chroma plane of YUV; green follows from the luma
    u, v = 0.492 * blue, 0.877 * red
    u, v = u * angle.cos() - v * angle.sin(), u * angle.sin() + v * angle.cos()
    red, blue = v / 0.877, u / 0.492
    green = -(0.299 * red + 0.114 * blue) / 0.587
    return (luma + torch.cat([red, green, blue], 1)).clamp_(0, 255)


def posterize(images: Tensor, bits: Tensor) -> Tensor:
    """Keep only the highest `bits` of each value."""
    step = _each(2 ** (8 - bits))
    return (images / step).floor_() * step


def solarize(images: Tensor, threshold: Tensor) -> Tensor:
    """Invert values of at least `threshold`."""
    return torch.where(images >= _each(threshold), 255 - images, images)


def auto_contrast(images: Tensor, _: Tensor) -> Tensor:
    """Stretch each channel to 0..255; a constant channel does not change."""
    low, high = images.amin((2, 3), keepdim=True), images.amax((2, 3), keepdim=True)
    stretched = (images - low) * (255 / (high - low).clamp(min=1e-3))
    return torch.where(high > low, stretched, images).clamp_(0, 255)


def equalize(images: Tensor, _: Tensor) -> Tensor:
    """Equalise the histogram of each channel, with Pillow's integer arithmetic."""
    count, channels, height, width = images.shape
    values = images.round().clamp_(0, 255).to(torch.int64).view(count * channels, height * width)
    histogram = torch.zeros(len(values), 256, dtype=torch.int64, device=images.device)
    histogram.scatter_add_(1, values, torch.ones_like(values))
    last = 255 - (histogram.flip(1) > 0).to(torch.uint8).argmax(1, keepdim=True)
    step = (height * width - histogram.gather(1, last)) // 255
    before = histogram.cumsum(1) - histogram
    table = ((before + step // 2) // step.clamp(min=1)).clamp_(0, 255)
    table = torch.where(step > 0, table, torch.arange(256, device=images.device))
    return table.gather(1, values).view_as(images).to(images.dtype)


def warp(images: Tensor, matrices: Tensor) -> Tensor:
    """Read each output pixel at `matrices` (n, 2, 3) times its (x, y, 1), in pixels from the centre; black outside."""
    height, width = images.shape[-2:]
    scale = torch.stack([matrices.new_full((), side) for side in (width / 2, height / 2, 1.0)])
    theta = matrices * scale / scale[:2, None]
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, align_corners=False)


def _blend(other: Tensor, images: Tensor, factor: Tensor) -> Tensor:
    return torch.lerp(other.expand_as(images), images, _each(factor)).clamp_(0, 255)


def _each(values: Tensor) -> Tensor:
    return values[:, None, None, None]
