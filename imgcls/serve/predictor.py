"""From the images and tensors of a request to the model's input, and on to its logits."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from imgcls import portable
from imgcls.errors import UserError
from imgcls.images.decoding import BadPicture, HugePicture
from imgcls.models.hub import fetch_model, is_on_hub
from imgcls.portable import PortableModel
from imgcls.portable.formats import Engine
from imgcls.serve.batching import NOT_FINITE
from imgcls.serve.payloads import Array, Encoded, Item, Link
from imgcls.serve.refusals import Refusal
from imgcls.serve.urls import Fetcher
from imgcls.system.machine import available_cores

MAX_PIXELS = 40_000_000
"""Of a served image."""
LARGE_PIXELS = 4_000_000
"""Images of more pixels are decoded one at a time: each takes up to MAX_LARGE_BYTES."""
MAX_LARGE_BYTES = 700_000_000
"""Peak memory of decoding an image of MAX_PIXELS in any format."""


class LargeImage(Exception):  # noqa: N818 - it waits for its turn
    """An image of more than LARGE_PIXELS."""


MAX_NORMALISED = 50.0
"""Normalised pixels rarely exceed 3; values up to 255 were not normalised."""


@dataclass
class Predictor:
    """A portable model that takes the items of requests.

    Attributes:
        model: computes the logits.
        fetcher: fetches links; None: links are refused.
        max_pixels: larger images are refused.
        copies: the same model on further devices, with which a server shares the images.
    """

    model: PortableModel
    fetcher: Fetcher | None = None
    max_pixels: int = MAX_PIXELS
    copies: Sequence[PortableModel] = ()
    _large: threading.Lock = field(default_factory=threading.Lock)
    _pool: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(available_cores(), "imgcls-decode"))

    @property
    def engines(self) -> list[Engine]:
        """One for each device."""
        return [model.engine for model in (self.model, *self.copies)]

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W), the shape of the model's input."""
        return self.model.preprocessing.channels, *self.model.preprocessing.shape

    def image(self, item: Item, max_pixels: int | None = None) -> np.ndarray:
        """The model's input, float32 (3, S, S).

        Raises:
            Refusal: `item` is not an image or not such a tensor.
            LargeImage: it has more than `max_pixels`, and has not been decoded.
        """
        if isinstance(item, Link):
            item = self.encoded(item)
        if isinstance(item, Array) and item.values.dtype == np.float32:
            return self._check(item.values)
        source = item.values if isinstance(item, Array) else item.content
        try:
            picture = self.model.preprocessing.open(source, min(max_pixels or self.max_pixels, self.max_pixels))
        except HugePicture as error:
            if max_pixels is not None and max_pixels < self.max_pixels:
                raise LargeImage from error
            raise Refusal(413, f"The image cannot be used: {error.reason}.") from error
        except BadPicture as error:
            raise Refusal(400, f"The image cannot be used: {error.reason}.") from error
        except MemoryError as error:
            raise Refusal(413, "The image is too large.") from error
        preprocessing = self.model.preprocessing
        return preprocessing.normalise(preprocessing.pixels(picture)[None])[0]

    def encoded(self, link: Link) -> Encoded:
        """The image behind `link`. Raises Refusal if it cannot be fetched or fetching is off."""
        if self.fetcher is None:
            raise Refusal(400, "This server does not fetch images from URLs; send the image itself.")
        return Encoded(self.fetcher.fetch(link.url))

    def _check(self, values: np.ndarray) -> np.ndarray:
        if values.shape != self.shape:
            shape, expected = ("x".join(map(str, shape)) for shape in (values.shape, self.shape))
            raise Refusal(
                400,
                f"The tensor has the shape {shape}; the model takes {expected}, or pixels as uint8 "
                f"(height, width, {self.shape[0]}).",
            )
        largest = np.abs(values).max()
        if not np.isfinite(largest):
            raise Refusal(400, "The tensor has values that are not finite.")
        if largest > MAX_NORMALISED:
            raise Refusal(
                400,
                f"The tensor has values up to {largest:g}: it is not normalised. Send pixels as uint8 "
                "(height, width, 3), or subtract the mean and divide by the standard deviation.",
            )
        return values

    def results(self, items: Sequence[Item | Refusal]) -> list[np.ndarray | Refusal]:
        """Of each item its outputs, float32 (C,) or (C + 1,), or why it has none. The items are decoded in parallel."""
        images = list(self._pool.map(self._image_in_turn, items))
        good = [image for image in images if not isinstance(image, Refusal)]
        rows = iter(self.outputs(good) if good else [])
        return [image if isinstance(image, Refusal) else next(rows) for image in images]

    def _image_in_turn(self, item: Item | Refusal) -> np.ndarray | Refusal:
        if isinstance(item, Refusal):
            return item
        try:
            try:
                return self.image(item, LARGE_PIXELS)
            except LargeImage:
                with self._large:
                    return self.image(item)
        except Refusal as refusal:
            return refusal

    def outputs(self, images: list[np.ndarray], batch_size: int = 32) -> np.ndarray:
        """The outputs of the engine for float32 (3, S, S) images: logits, and novelty if the model has it."""
        batches = [np.stack(images[start : start + batch_size]) for start in range(0, len(images), batch_size)]
        outputs = np.concatenate([self.model.engine.outputs(batch) for batch in batches])
        if not np.isfinite(outputs).all():
            raise Refusal(500, NOT_FINITE)
        return outputs

    def warm_up(self, largest: int = 1) -> None:
        """Run each engine on batches of 1, 2, 4, … up to at least `largest` images, so that no request waits for it."""
        for engine in self.engines:
            outputs = engine.outputs(np.zeros((1, *self.shape), dtype=np.float32))
            if outputs.shape != (1, len(self.model.class_names) + (self.model.known_share is not None)):
                raise UserError(
                    f"The model has {outputs.shape[1]} outputs for {len(self.model.class_names)} class names."
                )
            if not np.isfinite(outputs).all():
                raise UserError(f"{NOT_FINITE} It cannot be served; train or export it again.")
            for power in range(1, (largest - 1).bit_length() + 1):
                engine.outputs(np.zeros((1 << power, *self.shape), dtype=np.float32))


def model_folder(folder: str | Path) -> Path:
    """The folder of the portable model: `folder`, `model/` in that of a run, or a copy of hf-hub:user/name."""
    if is_on_hub(folder):
        return fetch_model(str(folder))
    path = Path(folder).expanduser()
    if not path.is_dir():
        raise UserError(f"{folder}: no such folder.")
    for candidate in (path, path / "model"):
        if (candidate / portable.DESCRIPTION).is_file():
            return candidate
    raise UserError(
        f"{folder} holds no exported model. Finish its run, or export it: python -m imgcls.export run={folder}"
    )
