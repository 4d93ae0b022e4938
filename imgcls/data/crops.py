"""Crops of whole batches, another one for each picture.

Pictures are (N, 3, H, W), uint8 or float, with values in 0..255; so is what comes out.
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
from imgcls.system.checks import check_value, choice

Layout = Literal["centre", "squash"]
"""How the store holds training pictures: as evaluation sees them, or the whole picture squashed to a square."""


PADDING_MODES = ("constant", "reflect")
THREADED = 1 << 20
"""Values that are worth a thread."""


class RandomResizedCrop:
    """A box of random area, shape and place, resized to the side asked for (Szegedy et al. 2014).

    The box is chosen in the geometry of the original picture and read from the squashed one, so shapes come out as
    torchvision's RandomResizedCrop gives them.

    Args:
        scale: smallest and largest share of the picture's area.
        ratio: smallest and largest width / height, drawn log-uniformly.
    """

    layout: ClassVar[Layout] = "squash"
    attempts: ClassVar[int] = 10

    def __init__(self, scale: tuple[float, float] = (0.35, 1.0), ratio: tuple[float, float] = (3 / 4, 4 / 3)) -> None:
        self.scale, self.ratio = _range("scale", scale, most=1.0), _range("ratio", ratio)

    def boxes(self, draws: Draws, aspect: Tensor) -> Tensor:
        """float32 (N, 4): left, top, width and height as shares of the picture, whose width / height is `aspect` (N,).

        The first of ten attempts that fits; where none does, the largest centred box of an allowed shape.
        """
        tries = draws.stream("box").uniform(2 * self.attempts).view(-1, self.attempts, 2)
        area = self.scale[0] + tries[..., 0] * (self.scale[1] - self.scale[0])
        low, high = math.log(self.ratio[0]), math.log(self.ratio[1])
        shape = torch.exp(low + tries[..., 1] * (high - low)) / aspect[:, None]
        widths, heights = torch.sqrt(area * shape), torch.sqrt(area / shape)
        fits = (widths <= 1) & (heights <= 1)
        first = fits.to(torch.uint8).argmax(1, keepdim=True)
        width, height = widths.gather(1, first)[:, 0], heights.gather(1, first)[:, 0]

        allowed = aspect.clamp(self.ratio[0], self.ratio[1]) / aspect
        none = ~fits.any(1)
        width = torch.where(none, allowed.clamp(max=1), width)
        height = torch.where(none, (1 / allowed).clamp(max=1), height)
        place = torch.where(none[:, None], 0.5, draws.stream("place").uniform(2))
        return torch.stack([place[:, 0] * (1 - width), place[:, 1] * (1 - height), width, height], 1)

    def __call__(
        self, images: Tensor, draws: Draws, size: int, aspect: Tensor | None = None, mirrored: Tensor | None = None
    ) -> Tensor:
        """(N, 3, H, W) squashed pictures to (N, 3, size, size).

        `aspect`, (N,), is that of the originals, 1 if absent; those that are `mirrored`, bool (N,), come out so.
        """
        if aspect is None:
            aspect = torch.ones(len(images), device=draws.keys.device)
        return resized_crops(images, self.boxes(draws, aspect), size, mirrored)


class PaddedCrop:
    """Pad on all sides, crop the old size at a random place: the usual way for small pictures.

    Args:
        padding: share of the side; 1/8 is the 4 pixels that CIFAR's 32 are padded with.
        mode: what is padded with: `constant` (black), or `reflect`, the picture mirrored at its border.
    """

    layout: ClassVar[Layout] = "centre"

    def __init__(self, padding: float = 0.125, mode: str = "constant") -> None:
        if not 0 <= padding <= 1:
            raise UserError(f"crop.padding={padding} is a share of the side; it lies in 0..1, as 0.125 does.")
        check_value("crop.mode", mode, choice(*PADDING_MODES))
        if mode == "reflect" and padding > 0.5:
            raise UserError(f"crop.padding={padding}: crop.mode=reflect pads with at most half of the picture, 0.5.")
        self.padding, self.mode = padding, mode

    def __call__(
        self, images: Tensor, draws: Draws, size: int, aspect: Tensor | None = None, mirrored: Tensor | None = None
    ) -> Tensor:
        """(N, 3, H, H) to (N, 3, size, size): cropped at H, then resized if that is another side.

        Those that are `mirrored`, bool (N,), come out so.
        """
        pixels = round(self.padding * images.shape[-1])
        places = draws.stream("place").integers(2, 2 * pixels + 1)
        return resize(padded_crops(images, places, pixels, mirrored, self.mode), size)


def padded_crops(
    images: Tensor, places: Tensor, pixels: int, mirrored: Tensor | None = None, mode: str = "constant"
) -> Tensor:
    """Windows of (N, 3, H, H) at `places` (N, 2: x, y) after padding with `pixels`, see PaddedCrop; some `mirrored`.

    On the CPU picture by picture in numpy, without torch's threads: as fast on idle cores, measured eight times as
    fast on busy ones, where threaded operations wait for each other.
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
    for position, ((x, y), turned) in enumerate(zip(places.tolist(), flips, strict=True)):
        window = padded[position, :, y : y + side, x : x + side]
        out[position] = window[:, :, ::-1] if turned else window
    return torch.from_numpy(out)


def _windows(images: Tensor, places: Tensor, pixels: int, mirrored: Tensor | None, mode: str) -> Tensor:
    """The same as one gathering for devices, in channels_last order."""
    side, device = images.shape[-1], images.device
    turned = torch.zeros(len(places), dtype=torch.int64) if mirrored is None else mirrored.to(torch.int64)
    x, y, turned = send(torch.cat([places - pixels, turned[:, None]], 1), device).unbind(1)
    at = torch.arange(side, device=device)
    columns = x[:, None] + torch.where(turned[:, None] > 0, side - 1 - at, at)
    rows = y[:, None] + at
    inside = ((rows >= 0) & (rows < side))[:, :, None] & ((columns >= 0) & (columns < side))[:, None, :]
    rows, columns = (side - 1 - (side - 1 - where.abs()).abs() for where in (rows, columns))
    batch = torch.arange(len(images), device=device)[:, None, None]
    out = images.permute(0, 2, 3, 1)[batch, rows[:, :, None], columns[:, None, :]]
    if mode == "constant":
        out = out * inside[..., None]
    return out.permute(0, 3, 1, 2)


def flip(images: Tensor, chosen: Tensor | None) -> Tensor:
    """Mirror the `chosen` pictures, bool (N,), left to right; `images` stay as they were."""
    if chosen is None:
        return images
    if images.device.type != "cpu":
        return torch.where(send(chosen, images.device)[:, None, None, None], images.flip(-1), images)
    positions = chosen.nonzero()[:, 0]
    return images.index_copy(0, positions, images[positions].flip(-1))


def resized_crops(images: Tensor, boxes: Tensor, size: int, mirrored: Tensor | None = None) -> Tensor:
    """Boxes of shares (N, 4: left, top, width, height), to whole pixels, resized bilinearly to (N, 3, size, size).

    On the CPU picture by picture with torch's uint8 kernels, measured 3 to 4 times as fast as `grid_sample` there;
    elsewhere as one `grid_sample`, equal to within rounding.
    """
    pixels = _whole_pixels(boxes, images.shape[-2], images.shape[-1])
    if images.device.type == "cpu":
        out = images.new_empty((len(images), images.shape[1], size, size))
        target, places = out.numpy(), pixels.tolist()
        flips = mirrored.tolist() if mirrored is not None else [False] * len(images)

        def crop(which: slice) -> None:
            for position in range(which.start, which.stop):
                left, top, width, height = places[position]
                part = images[position : position + 1, :, top : top + height, left : left + width]
                resized = F.interpolate(part, size=(size, size), mode="bilinear")[0].numpy()
                target[position] = resized[:, :, ::-1] if flips[position] else resized

        in_slices(crop, len(images), THREADED // out[0].numel())
        return out
    return flip(_sampled(images, pixels, size), mirrored)


def _sampled(images: Tensor, pixels: Tensor, size: int) -> Tensor:
    """The boxes `pixels`, int64 (N, 4), as one sampling for devices."""
    grid = _grid(send(pixels.to(torch.float32), images.device), size, images.shape[-2], images.shape[-1])
    values = F.grid_sample(images.to(torch.float32), grid, align_corners=False, padding_mode="border")
    return values if images.is_floating_point() else values.round_().to(images.dtype)


def _whole_pixels(boxes: Tensor, height: int, width: int) -> Tensor:
    sides = torch.tensor([width, height], device=boxes.device)
    first = (boxes[:, :2] * sides).round().clamp(min=0).minimum(sides - 1)
    extent = (boxes[:, 2:] * sides).round().clamp(min=1).minimum(sides - first)
    return torch.cat([first, extent], 1).to(torch.int64)


def _grid(pixels: Tensor, size: int, height: int, width: int) -> Tensor:
    """Where `interpolate` reads each output pixel, in -1..1, never outside the box: (N, size, size, 2)."""
    steps = (torch.arange(size, device=pixels.device) + 0.5) / size
    axes = []
    for axis, side in ((0, width), (1, height)):
        first, extent = pixels[:, axis, None], pixels[:, axis + 2, None]
        at = first + (steps * extent).clamp(min=0.5).minimum(extent - 0.5)
        axes.append(at * (2 / side) - 1)
    return torch.stack([axes[0][:, None, :].expand(-1, size, -1), axes[1][:, :, None].expand(-1, -1, size)], -1)


def resize(images: Tensor, size: int) -> Tensor:
    """(N, 3, H, W) to (N, 3, size, size), bicubic and antialiased as in Pillow; untouched where it fits."""
    if images.shape[-2:] == (size, size):
        return images
    if images.device.type == "cpu" or images.is_floating_point():
        return F.interpolate(images, size=(size, size), mode="bicubic", antialias=True)
    values = F.interpolate(images.to(torch.float32), size=(size, size), mode="bicubic", antialias=True)
    return values.round_().clamp_(0, 255).to(images.dtype)


def _range(name: str, values: tuple[float, float], most: float = math.inf) -> tuple[float, float]:
    low, high = (float(value) for value in values)
    if not 0 < low <= high <= most:
        limit = f" and at most {most:g}" if math.isfinite(most) else ""
        raise UserError(f"crop.{name}={[low, high]} must be two rising numbers above 0{limit}.")
    return low, high
