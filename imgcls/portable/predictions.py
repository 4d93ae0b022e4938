"""What a model answers for an image: its likeliest classes, and those of all images in a folder as a table."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from imgcls.errors import UserError
from imgcls.images.decoding import BadPicture

log = logging.getLogger(__name__)

BATCH = 32


class Prediction(list[tuple[str, float]]):
    """The likeliest classes of an image, each as (name, probability), most likely first.

    >>> prediction = Prediction([("cat", 0.9), ("dog", 0.1)], file="tom.jpg")
    >>> prediction.label, prediction.probability, prediction.file
    ('cat', 0.9, 'tom.jpg')
    """

    def __init__(
        self, classes: Iterable[tuple[str, float]], file: str | None = None, novelty: float | None = None
    ) -> None:
        super().__init__(classes)
        self.file = file
        """Path of the image, if it was given as one."""
        self.novelty = novelty
        """How unlike the training images it is, 0 for a usual one; None: the model has no such score."""

    @property
    def known(self) -> bool | None:
        """Whether it is like the training images, with a novelty of at most 1; None: the model does not say."""
        return None if self.novelty is None else self.novelty <= 1

    @property
    def label(self) -> str:
        """The most likely class."""
        return self[0][0]

    @property
    def probability(self) -> float:
        """The probability of the most likely class."""
        return self[0][1]


def novelty_entries(novelty: float | None) -> dict[str, bool | float]:
    """What an answer in JSON says of the novelty of its image; empty without one."""
    return {} if novelty is None else {"known": novelty <= 1, "novelty": round(novelty, 4)}


def predict_folder(model: Any, folder: Path, top_k: int = 5) -> Any:
    """The likeliest class of each image in `folder` and its subfolders; an unreadable one is logged and left out.

    Args:
        model: a PortableModel.
        folder: of the images.
        top_k: number of classes.

    Returns:
        A pandas DataFrame with the columns file, class and probability; where pandas is not installed, a list of
        Prediction with the `top_k` likeliest classes of each image.

    Raises:
        UserError: there are no images.
    """
    from imgcls.data.folders import pictures_in

    names = pictures_in(folder)
    if not names:
        raise UserError(f"{folder}: no images in this folder.")
    predictions: list[Prediction] = []
    for start in range(0, len(names), BATCH):
        pictures = {}
        for name in names[start : start + BATCH]:
            try:
                pictures[name] = model.preprocessing.open(folder / name)
            except BadPicture as error:
                log.warning("%s: %s; left out.", folder / name, error.reason)
        answers = model.top(list(pictures.values()), top_k)
        predictions += [Prediction(classes, name) for name, classes in zip(pictures, answers, strict=True)]
    return _as_table(predictions)


def _as_table(predictions: Sequence[Prediction]) -> Any:
    try:
        import pandas  # type: ignore[import-untyped,unused-ignore]
    except ImportError:
        return list(predictions)
    rows = [(prediction.file, prediction.label, prediction.probability) for prediction in predictions]
    return pandas.DataFrame(rows, columns=["file", "class", "probability"])
