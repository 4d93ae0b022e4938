"""Images that are hard to see: blurred, very dark, without contrast, tiny, or of an odd aspect ratio.

All limits are also relative to the data set: what most of its images are like is no fault of an image.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from imgcls.data.checks import Findings
from imgcls.data.stores.store import Store

DARK = 20.0
"""Mean grey value in 0..255 under which an image is very dark."""
FLAT = 6.0
"""Standard deviation of the grey values of a thumbnail under which an image shows next to nothing."""
TINY = 0.5
"""Share of the model's input side, and of the median, under which the shorter side is tiny."""
ODD = 2.5
"""Times that the longer side has the shorter one, in an image of an odd aspect ratio."""
BLURRED = 3.5
"""Robust standard deviations under the median of the logarithm of the sharpness."""
RELATIVE = 3.0
"""Times under the data set's median that a dark or flat image is."""
BATCH = 256
ROBUST = 1.4826  # standard deviations of a normal distribution in its median absolute deviation
GREY = np.array([0.299, 0.587, 0.114], dtype=np.float32)
TINIEST = 1e-6


def find_poor_images(findings: Findings, sharpness: np.ndarray | None, input_side: int) -> list[str]:
    """What is wrong with each image: '' or words such as 'blurred, very dark'.

    Args:
        findings: of all images of a data set.
        sharpness: float32 (N,), see `measure_sharpness`; None: blur is not looked for.
        input_side: shorter side of the model's input, px.
    """
    grey = findings.thumbnails.astype(np.float32) @ GREY
    light, contrast = grey.mean(axis=(1, 2)), grey.std(axis=(1, 2))
    short, long = findings.sizes.min(axis=1).clip(1), findings.sizes.max(axis=1).clip(1)
    # the side on which an image is long, so that in a set of portraits a landscape is odd and not the other way round
    shape = np.log(findings.sizes[:, 0].clip(1) / findings.sizes[:, 1].clip(1))
    usable = findings.reasons == ""
    median = {
        name: float(np.median(values[usable])) if usable.any() else 0.0
        for name, values in {"light": light, "contrast": contrast, "short": short, "shape": shape}.items()
    }
    dark = (light < DARK) & (light * RELATIVE < median["light"])
    flat = (contrast < FLAT) & (contrast * RELATIVE < median["contrast"])
    tiny = (short < TINY * input_side) & (short < TINY * median["short"])
    odd = (long > ODD * short) & (np.abs(shape - median["shape"]) > math.log(ODD) / 2)
    kinds = {"very dark": dark, "no contrast": flat & ~dark, "tiny": tiny, "odd aspect ratio": odd}
    if sharpness is not None:
        kinds["blurred"] = _low(np.log(sharpness + TINIEST)) & ~(flat | tiny)
    return [", ".join(kind for kind, rows in kinds.items() if rows[row]) for row in range(len(findings))]


def _low(values: np.ndarray) -> np.ndarray:
    """bool (N,): values far under the median."""
    if not len(values):
        return np.zeros(0, dtype=bool)
    median = np.median(values)
    spread = ROBUST * np.median(np.abs(values - median))
    return values < median - BLURRED * max(spread, TINIEST)


def measure_sharpness(stores: Sequence[Store]) -> np.ndarray:
    """float32 (N,): the sharpness of the images of all `stores`, as the model sees them.

    It is the variance of the Laplacian (Pech-Pacheco et al. 2000) over that of the image, so that a blurred image with
    strong contrast is not sharper than a sharp one in fog.
    """
    return np.concatenate([part for store in stores for part in _sharpness_of(store)] or [np.zeros(0, np.float32)])


def _sharpness_of(store: Store) -> Iterator[np.ndarray]:
    for start in range(0, len(store), BATCH):
        pixels = store.gather(torch.arange(start, min(start + BATCH, len(store))))
        middle = pixels.shape[1] // 2  # of colours green, of which the eye's grey mostly consists
        yield _sharpness(pixels[:, middle]).numpy()


def _sharpness(grey: Tensor) -> Tensor:
    """float32 (n,) of uint8 or uint16 (n, H, W)."""
    values = grey.float()
    inner = values[:, 1:-1, 1:-1]
    around = values[:, :-2, 1:-1] + values[:, 2:, 1:-1] + values[:, 1:-1, :-2] + values[:, 1:-1, 2:]
    laplacian = torch.addcmul(around, inner, torch.tensor(-4.0)) if inner.numel() else around
    if not laplacian.numel():
        return values.new_zeros(len(values))
    return laplacian.var(dim=(1, 2), correction=0) / (values.var(dim=(1, 2), correction=0) + 1)
