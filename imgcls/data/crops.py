"""Crops of whole batches, a different one for each image.

Input and output are (N, 3, H, W), uint8 or float, with values in 0..255.
"""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from imgcls.data.batch import send
from imgcls.data.randomness import Draws
from imgcls.data.threads import in_slices
from imgcls.errors import UserError
from imgcls.images.preprocessing import Size, sides
from imgcls.system.checks import check_value, choice

Layout = Literal["centre", "squash"]
"""How the store has training images: as in evaluation, or whole, for crops of them."""

PADDING_MODES = ("constant", "reflect")
MIN_VALUES_PER_THREAD = 1 << 20


class RandomResizedCrop:
    """A box of random area, shape and position, resized to the requested side (Szegedy et al. 2014).

    The box is chosen in the geometry of the original image and read from the squashed one, so that shapes are those of
    torchvision's RandomResizedCrop.

    Args:
        scale: smallest and largest share of the image's area.
        ratio: smallest and largest width / height, drawn log-uniformly.
    """

    layout: ClassVar[Layout] = "squash"
    attempts: ClassVar[int] = 10

    def __init__(self, scale: tuple[float, float] = (0.35, 1.0), ratio: tuple[float, float] = (3 / 4, 4 / 3)) -> None:
        self.scale, self.ratio = _range("scale", scale, limit=1.0), _range("ratio", ratio)

    def boxes(self, draws: Draws, aspect: Tensor, target: float = 1.0) -> Tensor:
        """float32 (N, 4): left, top, width and height as shares of the image, whose width / height is `aspect` (N,).

        `target` is the width / height of the output, by which the allowed shapes are scaled. The first of ten attempts
        that fits; if none does, the largest centred box of an allowed shape.
        """
        tries = draws.stream("box").uniform(2 * self.attempts).view(-1, self.attempts, 2)
        area = self.scale[0] + tries[..., 0] * (self.scale[1] - self.scale[0])
        smallest, largest = self.ratio[0] * target, self.ratio[1] * target
        low, high = math.log(smallest), math.log(largest)
        shape = torch.exp(low + tries[..., 1] * (high - low)) / aspect[:, None]
        widths, heights = torch.sqrt(area * shape), torch.sqrt(area / shape)
        fits = (widths <= 1) & (heights <= 1)
        first = fits.to(torch.uint8).argmax(1, keepdim=True)
        width, height = widths.gather(1, first)[:, 0], heights.gather(1, first)[:, 0]

        allowed = aspect.clamp(smallest, largest) / aspect
        none = ~fits.any(1)
        width = torch.where(none, allowed.clamp(max=1), width)
        height = torch.where(none, (1 / allowed).clamp(max=1), height)
        place = torch.where(none[:, None], 0.5, draws.stream("place").uniform(2))
        return torch.stack([place[:, 0] * (1 - width), place[:, 1] * (1 - height), width, height], 1)

    def __call__(
        self, images: Tensor, draws: Draws, size: Size, aspect: Tensor | None = None, mirrored: Tensor | None = None
    ) -> Tensor:
        """Crop squashed images (N, 3, H, W) to `size`.

        `aspect`, (N,), is that of the originals, 1 if None; `mirrored`, bool (N,), are mirrored.
        """
        if aspect is None:
            aspect = torch.ones(len(images), device=draws.keys.device)
        height, width = sides(size)
        return resized_crops(images, self.boxes(draws, aspect, width / height), size, mirrored)


class PaddedCrop:
    """Pad on all sides, and crop the original size at a random position, as usual for small images.

    Args:
        padding: share of the side; 1/8 pads CIFAR's 32 pixels with the usual 4.
        mode: `constant` (black), or `reflect`, the image mirrored at its border.
    """

    layout: ClassVar[Layout] = "centre"

    def __init__(self, padding: float = 0.125, mode: str = "constant") -> None:
        if not 0 <= padding <= 1:
            raise UserError(f"crop.padding={padding} is a share of the side and must be in 0..1, such as 0.125.")
        check_value("crop.mode", mode, choice(*PADDING_MODES))
        if mode == "reflect" and padding > 0.5:
            raise UserError(f"crop.padding={padding}: crop.mode=reflect pads with up to half of the image, 0.5.")
        self.padding, self.mode = padding, mode

    def __call__(
        self, images: Tensor, draws: Draws, size: Size, aspect: Tensor | None = None, mirrored: Tensor | None = None
    ) -> Tensor:
        """Crop (N, 3, H, H) at side H, and resize to `size`; `mirrored`, bool (N,), are mirrored."""
        if images.shape[-1] != images.shape[-2]:
            raise UserError("augment=pad_crop is for square images. Use augment=default with this data.image_size.")
        pixels = round(self.padding * images.shape[-1])
        places = draws.stream("place").integers(2, 2 * pixels + 1)
        return resize(padded_crops(images, places, pixels, mirrored, self.mode), size)


def padded_crops(
    images: Tensor, places: Tensor, pixels: int, mirrored: Tensor | None = None, mode: str = "constant"
) -> Tensor:
    """Windows of (N, 3, H, H) at `places` (N, 2: x, y) after padding with `pixels`, see PaddedCrop; some `mirrored`.

    On the CPU image by image in numpy, without torch's threads: as fast on idle cores, measured eight times as fast on
    busy ones, where threaded operations wait for each other.
    """
    if images.device.type != "cpu":
        return _windows(images, places, pixels, mirrored, mode)
    side = images.shape[-1]
    if mode == "reflect":
        padded = np.pad(images.numpy(), ((0, 0), (0, 0), (pixels, pixels), (pixels, pixels)), mode="reflect")
    else:
        shape = (*images.shape[:2], side + 2 * pixels, side + 2 * pixels)
        padded = np.zeros(shape, dtype=np.float32 if images.is_floating_point() else np.uint8)
        padded[:, :, pixels : pixels + side, pixels : pixels + side] = images.numpy()
    out = np.empty((*images.shape[:2], side, side), dtype=padded.dtype)
    flips = mirrored.tolist() if mirrored is not None else [False] * len(images)
    for position, ((x, y), flipped) in enumerate(zip(places.tolist(), flips, strict=True)):
        window = padded[position, :, y : y + side, x : x + side]
        out[position] = window[:, :, ::-1] if flipped else window
    return torch.from_numpy(out)


def _windows(images: Tensor, places: Tensor, pixels: int, mirrored: Tensor | None, mode: str) -> Tensor:
    """The same in one gather for devices, in channels_last order."""
    side, device = images.shape[-1], images.device
    flipped = torch.zeros(len(places), dtype=torch.int64) if mirrored is None else mirrored.to(torch.int64)
    x, y, flipped = send(torch.cat([places - pixels, flipped[:, None]], 1), device).unbind(1)
    offsets = torch.arange(side, device=device)
    columns = x[:, None] + torch.where(flipped[:, None] > 0, side - 1 - offsets, offsets)
    rows = y[:, None] + offsets
    inside = ((rows >= 0) & (rows < side))[:, :, None] & ((columns >= 0) & (columns < side))[:, None, :]
    rows, columns = (side - 1 - (side - 1 - index.abs()).abs() for index in (rows, columns))
    batch = torch.arange(len(images), device=device)[:, None, None]
    out = images.permute(0, 2, 3, 1)[batch, rows[:, :, None], columns[:, None, :]]
    if mode == "constant":
        out = out * inside[..., None]
    return out.permute(0, 3, 1, 2)


def flip(images: Tensor, chosen: Tensor | None) -> Tensor:
    """A copy with the `chosen` images, bool (N,), mirrored left to right."""
    if chosen is None:
        return images
    if images.device.type != "cpu":
        return torch.where(send(chosen, images.device)[:, None, None, None], images.flip(-1), images)
    positions = chosen.nonzero()[:, 0]
    return images.index_copy(0, positions, images[positions].flip(-1))


def resized_crops(images: Tensor, boxes: Tensor, size: Size, mirrored: Tensor | None = None) -> Tensor:
    """Boxes of shares (N, 4: left, top, width, height), rounded to pixels, resized bilinearly to `size`.

    On the CPU image by image with torch's uint8 kernels, measured 3 to 4 times as fast as `grid_sample` there;
    elsewhere in one `grid_sample`, equal to within rounding.
    """
    pixels = _whole_pixels(boxes, images.shape[-2], images.shape[-1])
    if images.device.type == "cpu":
        shape = sides(size)
        out = images.new_empty((len(images), images.shape[1], *shape))
        target, places = out.numpy(), pixels.tolist()
        flips = mirrored.tolist() if mirrored is not None else [False] * len(images)

        def crop(part: slice) -> None:
            for position in range(part.start, part.stop):
                left, top, width, height = places[position]
                box = images[position : position + 1, :, top : top + height, left : left + width]
                resized = F.interpolate(box, size=shape, mode="bilinear")[0].numpy()
                target[position] = resized[:, :, ::-1] if flips[position] else resized

        in_slices(crop, len(images), MIN_VALUES_PER_THREAD // out[0].numel())
        return out
    return flip(_sample_boxes(images, pixels, size), mirrored)


def _sample_boxes(images: Tensor, pixels: Tensor, size: Size) -> Tensor:
    """The boxes `pixels`, int64 (N, 4), in one `grid_sample` for devices."""
    grid = _grid(send(pixels.to(torch.float32), images.device), size, images.shape[-2], images.shape[-1])
    values = F.grid_sample(images.to(torch.float32), grid, align_corners=False, padding_mode="border")
    return values if images.is_floating_point() else values.round_().to(images.dtype)


def _whole_pixels(boxes: Tensor, height: int, width: int) -> Tensor:
    sides = torch.tensor([width, height], device=boxes.device)
    first = (boxes[:, :2] * sides).round().clamp(min=0).minimum(sides - 1)
    extent = (boxes[:, 2:] * sides).round().clamp(min=1).minimum(sides - first)
    return torch.cat([first, extent], 1).to(torch.int64)


def _grid(pixels: Tensor, size: Size, height: int, width: int) -> Tensor:
    """The position in -1..1 at which `interpolate` reads each output pixel, within the box: (N, H, W, 2)."""
    out_height, out_width = sides(size)
    axes = []
    for axis, side, count in ((0, width, out_width), (1, height, out_height)):
        steps = (torch.arange(count, device=pixels.device) + 0.5) / count
        first, extent = pixels[:, axis, None], pixels[:, axis + 2, None]
        positions = first + (steps * extent).clamp(min=0.5).minimum(extent - 0.5)
        axes.append(positions * (2 / side) - 1)
    return torch.stack(
        [axes[0][:, None, :].expand(-1, out_height, -1), axes[1][:, :, None].expand(-1, -1, out_width)], -1
    )


def resize(images: Tensor, size: Size) -> Tensor:
    """Resize (N, 3, H, W) to `size`, bicubic and antialiased as in Pillow; unchanged if it fits."""
    shape = sides(size)
    if images.shape[-2:] == shape:
        return images
    if images.device.type == "cpu" or images.is_floating_point():
        return F.interpolate(images, size=shape, mode="bicubic", antialias=True)
    values = F.interpolate(images.to(torch.float32), size=shape, mode="bicubic", antialias=True)
    return values.round_().clamp_(0, 255).to(images.dtype)


def _range(name: str, values: tuple[float, float], limit: float = math.inf) -> tuple[float, float]:
    low, high = (float(value) for value in values)
    if not 0 < low <= high <= limit:
        most = f" and at most {limit:g}" if math.isfinite(limit) else ""
        raise UserError(f"crop.{name}={[low, high]} must be two rising numbers above 0{most}.")
    return low, high
