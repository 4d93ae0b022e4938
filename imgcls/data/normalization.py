"""The last step of preprocessing on whole batches: from the values of a store to what the model takes."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from imgcls.data.batch import send
from imgcls.data.crops import MIN_VALUES_PER_THREAD
from imgcls.data.threads import in_slices
from imgcls.images.preprocessing import Preprocessing


def normalise(images: Tensor, preprocessing: Preprocessing) -> Tensor:
    """(N, 3, H, W) of values in 0..255 to float32, equal bit for bit to `preprocessing.normalise` on any device."""
    if images.device.type == "cpu" and not images.is_floating_point():
        # by Preprocessing itself: torch's threads wait for each other on busy cores
        out = torch.empty(images.shape, dtype=torch.float32)
        target, pixels = out.numpy(), images.permute(0, 2, 3, 1).numpy()
        length = MIN_VALUES_PER_THREAD // images.shape[1:].numel()
        in_slices(lambda part: preprocessing.normalise(pixels[part], out=target[part]), len(images), length)
        return out
    offset, scale = _constants(preprocessing, images.device)
    if images.is_floating_point():
        return images.contiguous().sub(offset).mul_(scale)
    return images.contiguous().to(torch.float32).sub_(offset).mul_(scale)


@lru_cache(maxsize=16)
def _constants(preprocessing: Preprocessing, device: torch.device) -> tuple[Tensor, Tensor]:
    offset, scale = (torch.from_numpy(value)[:, None, None] for value in preprocessing.offset_and_scale())
    return send(offset, device), send(scale, device)
