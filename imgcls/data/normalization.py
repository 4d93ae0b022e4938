"""From the values of a store to what the model takes: the last step of preprocessing, on whole batches."""

from __future__ import annotations

import torch
from torch import Tensor

from imgcls.data.batch import send
from imgcls.data.crops import THREADED
from imgcls.data.threads import in_slices
from imgcls.preprocessing import Preprocessing


class Normaliser:
    """Values in 0..255 to normalised float32, equal bit for bit to `preprocessing.normalise`, on any device."""

    def __init__(self, preprocessing: Preprocessing) -> None:
        self.preprocessing = preprocessing
        self._constants: dict[torch.device, tuple[Tensor, Tensor]] = {}

    def __call__(self, images: Tensor) -> Tensor:
        """Uint8 or float images (N, 3, H, W) to float32 of that shape."""
        if images.device.type == "cpu" and not images.is_floating_point():
            return self._in_threads(images)
        offset, scale = self._constants_on(images.device)
        if images.is_floating_point():
            return images.contiguous().sub(offset).mul_(scale)
        return images.contiguous().to(torch.float32).sub_(offset).mul_(scale)

    def _constants_on(self, device: torch.device) -> tuple[Tensor, Tensor]:
        if device not in self._constants:
            offset, scale = (torch.from_numpy(value)[:, None, None] for value in self.preprocessing.offset_and_scale())
            self._constants[device] = send(offset, device), send(scale, device)
        return self._constants[device]

    def _in_threads(self, images: Tensor) -> Tensor:
        """On the CPU by Preprocessing itself; torch's threads wait for each other on busy cores."""
        out = torch.empty(images.shape, dtype=torch.float32)
        target, pixels = out.numpy(), images.permute(0, 2, 3, 1).numpy()

        def normalise(which: slice) -> None:
            self.preprocessing.normalise(pixels[which], out=target[which])

        in_slices(normalise, len(images), THREADED // images.shape[1:].numel())
        return out
