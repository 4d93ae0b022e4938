"""From one picture or tensor of a request to what goes into the model, and from scores to an answer."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from imgcls import portable
from imgcls.errors import UserError
from imgcls.pictures import BadPicture, HugePicture, open_picture
from imgcls.portable import PortableModel
from imgcls.serve.payloads import Array, Encoded, Item, Link
from imgcls.serve.refusals import Refusal
from imgcls.serve.urls import Fetcher
from imgcls.system.machine import available_cores

MAX_PIXELS = 40_000_000
"""Of a picture that is served: an eighth of a gigabyte as RGB, in each thread that decodes."""
LARGEST_NORMALISED = 50.0
"""Normalised pixels are rarely beyond 3; 0 to 255 are pixels that nobody normalised."""


@dataclass
class Predictor:
    """A portable model behind requests.

    Attributes:
        model: computes the scores.
        fetcher: fetches links; None: links are refused.
        max_pixels: of a picture.
    """

    model: PortableModel
    fetcher: Fetcher | None = None
    max_pixels: int = MAX_PIXELS
    _pool: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(available_cores(), "imgcls-decode"))

    @property
    def shape(self) -> tuple[int, int, int]:
        """(3, S, S): of what goes into the model."""
        return 3, self.model.preprocessing.image_size, self.model.preprocessing.image_size

    def image(self, item: Item) -> np.ndarray:
        """What goes into the model: float32 (3, S, S). Raises Refusal for what is no picture or no such tensor."""
        if isinstance(item, Link):
            item = self.encoded(item)
        if isinstance(item, Array) and item.values.dtype == np.float32:
            return self._checked(item.values)
        source = item.values if isinstance(item, Array) else item.content
        try:
            picture = open_picture(source, self.max_pixels)
        except BadPicture as error:
            raise Refusal(
                413 if isinstance(error, HugePicture) else 400, f"The picture cannot be used: {error.reason}."
            ) from error
        except MemoryError as error:
            raise Refusal(413, "The picture is too large.") from error
        preprocessing = self.model.preprocessing
        return preprocessing.normalise(preprocessing.pixels(picture)[None])[0]

    def encoded(self, link: Link) -> Encoded:
        """The picture behind `link`. Raises Refusal where it cannot be fetched, or none are."""
        if self.fetcher is None:
            raise Refusal(400, "This server fetches no pictures from URLs; send the picture itself.")
        return Encoded(self.fetcher.fetch(link.url))

    def _checked(self, values: np.ndarray) -> np.ndarray:
        if values.shape != self.shape:
            found, wanted = ("x".join(map(str, shape)) for shape in (values.shape, self.shape))
            raise Refusal(
                400,
                f"The tensor has the shape {found}; this model takes {wanted}, or pixels as uint8 (height, width, 3).",
            )
        largest = np.abs(values).max()
        if not np.isfinite(largest):
            raise Refusal(400, "The tensor holds values that are not finite.")
        if largest > LARGEST_NORMALISED:
            raise Refusal(
                400,
                f"The tensor has values up to {largest:g}: it is not normalised. Send pixels as uint8 "
                "(height, width, 3), or subtract the mean and divide by the standard deviation.",
            )
        return values

    def images(self, items: list[Item]) -> list[np.ndarray]:
        """`image` of each, decoded in parallel. Raises the Refusal of the first that has one."""
        return list(self._pool.map(self.image, items))

    def scores(self, images: list[np.ndarray], together: int = 32) -> np.ndarray:
        """float32 (N, C) for float32 (3, S, S) images."""
        parts = [
            self.model.engine.scores(np.stack(images[at : at + together])) for at in range(0, len(images), together)
        ]
        return np.concatenate(parts)

    def warm_up(self) -> None:
        """Compute once, so that the first request need not wait for what is done at first. Raises what goes wrong."""
        scores = self.model.engine.scores(np.zeros((1, *self.shape), dtype=np.float32))
        if scores.shape != (1, len(self.model.class_names)):
            raise UserError(f"The model gives {scores.shape[1]} scores for {len(self.model.class_names)} class names.")


def model_folder(folder: str | Path) -> Path:
    """The portable model's folder: `folder` itself, or `model/` in a run's folder."""
    path = Path(folder).expanduser()
    if not path.is_dir():
        raise UserError(f"{folder}: no such folder.")
    for candidate in (path, path / "model"):
        if (candidate / portable.DESCRIPTION).is_file():
            return candidate
    raise UserError(
        f"{folder} holds no exported model. Finish its run, or export it: python -m imgcls.export run={folder}"
    )
