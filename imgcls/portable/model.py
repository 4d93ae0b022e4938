"""The portable model: images in, probabilities out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from imgcls.errors import UserError, first_line
from imgcls.images.channels import Planes
from imgcls.images.decoding import BadPicture
from imgcls.images.preprocessing import Preprocessing
from imgcls.models.architecture import Architecture
from imgcls.models.choices import check_views
from imgcls.models.hub import fetch_model, is_on_hub
from imgcls.portable.conformal import ClassSets
from imgcls.portable.description import DESCRIPTION, ONNX, read_description
from imgcls.portable.engines import Engine, TorchEngine, create_engine
from imgcls.portable.predictions import Prediction

if TYPE_CHECKING:
    import torch

    from imgcls.models.network import Network


NO_SETS = (
    "coverage: the model was exported without sets of classes. Validation images give them, where each image has one "
    "class: python -m imgcls.export run=DIR"
)


NO_NOVELTY = "The model was exported without a novelty score: python -m imgcls.export run=DIR known=0.95"


@dataclass
class PortableModel:
    """A trained model with everything needed to use it.

    Attributes:
        engine: computes logits, with ONNX Runtime or torch.
        preprocessing: from an image to the engine's input.
        class_names: in the order of the logits.
        description: the content of `model.json`.
        sets: of classes with a given coverage; None: the model was exported without.
    """

    engine: Engine
    preprocessing: Preprocessing
    class_names: tuple[str, ...]
    description: dict[str, Any]
    sets: ClassSets | None = None

    @property
    def network(self) -> Network:
        """The torch network, whose logits have no temperature. Raises UserError if the engine is not torch."""
        if not isinstance(self.engine, TorchEngine):
            raise UserError(f"This model runs in {self.engine.name}. Load it with engine='torch' to get its network.")
        return self.engine.network

    def to(self, device: str | torch.device) -> PortableModel:
        """Move the network to `device`."""
        self.network.to(device)
        return self

    def predict(self, pictures: Sequence[Any], batch_size: int = 32) -> np.ndarray:
        """Probabilities of the classes, float32 (N, C).

        Args:
            pictures: paths, bytes, Pillow images or uint8 arrays (H, W, 3).
            batch_size: images that go through the network together.

        Raises:
            BadPicture: an image cannot be read; it is named by its path, or its place in `pictures`.
        """
        parts = [self.probabilities(pixels) for pixels in self._read(pictures, batch_size)]
        return np.concatenate([np.empty((0, len(self.class_names)), dtype=np.float32), *parts])

    def embed(self, pictures: Sequence[Any], batch_size: int = 32) -> np.ndarray:
        """The features of the backbone that the head classifies, float32 (N, F); arguments as for `predict`."""
        parts = [self.features(pixels) for pixels in self._read(pictures, batch_size)]
        return np.concatenate([np.empty((0, self.network.num_features), dtype=np.float32), *parts])

    def _read(self, pictures: Sequence[Any], batch_size: int) -> Iterator[np.ndarray]:
        for start in range(0, len(pictures), batch_size):
            batch = pictures[start : start + batch_size]
            opened = [_open(picture, start + place, self.preprocessing) for place, picture in enumerate(batch)]
            yield np.stack([self.preprocessing.pixels(picture) for picture in opened])

    @property
    def precision(self) -> str:
        """Of the weights: `fp32`, or the `fp16` or `int8` of an export."""
        return str(self.description.get("export", {}).get("precision", "fp32"))

    @property
    def known_share(self) -> float | None:
        """The share of images like those of validation that are known; None: the model knows no unknown images."""
        found = self.description.get("novelty")
        return float(found["share"]) if found else None

    def outputs(self, pixels: np.ndarray) -> np.ndarray:
        """The logits of uint8 (N, S, S, 3) pixels, float32 (N, C), and in a further column their novelty, if any."""
        return self.engine.outputs(self.preprocessing.normalise(pixels))

    def novelty(self, pictures: Sequence[Any], batch_size: int = 32) -> np.ndarray:
        """How unlike the training images each image is, float32 (N,): 0 for a usual one, above 1 for an unknown one.

        Raises UserError if the model was exported without.
        """
        if self.known_share is None:
            raise UserError(NO_NOVELTY)
        parts = [self.outputs(pixels)[:, -1] for pixels in self._read(pictures, batch_size)]
        return np.concatenate([np.empty(0, np.float32), *parts])

    def probabilities(self, pixels: np.ndarray) -> np.ndarray:
        """float32 (N, C) for uint8 (N, S, S, 3) pixels from `preprocessing.pixels`."""
        return self.activation(self.outputs(pixels)[:, : len(self.class_names)])

    def features(self, pixels: np.ndarray) -> np.ndarray:
        """float32 (N, F) features of the backbone for uint8 (N, S, S, 3) pixels; the engine must be torch."""
        import torch

        network = self.network
        device = next(network.parameters()).device
        with torch.inference_mode():
            images = torch.from_numpy(self.preprocessing.normalise(pixels)).to(device)
            return network.mean_features(images).float().cpu().numpy()

    @property
    def thresholds(self) -> tuple[float, ...] | None:
        """From which probability an image has each label, (C,); None: each image has one class."""
        found = self.description.get("thresholds")
        return tuple(map(float, found)) if found is not None else None

    def activation(self, logits: np.ndarray) -> np.ndarray:
        """float32 (N, C) probabilities of float32 (N, C) logits."""
        return softmax(logits) if self.thresholds is None else sigmoid(logits)

    def labels(self, pictures: Sequence[Any]) -> list[list[tuple[str, float]]]:
        """The labels of each image whose probability is at least its threshold, each as (name, probability).

        Raises UserError if the model gives each image one class.
        """
        if self.thresholds is None:
            raise UserError("This model gives each image one class. Use top().")
        thresholds = np.array(self.thresholds)
        answers = []
        for row in self.predict(pictures):
            above = sorted(np.flatnonzero(row >= thresholds).tolist(), key=lambda label: -row[label])
            answers.append([(self.class_names[label], float(row[label])) for label in above])
        return answers

    def top(self, pictures: Sequence[Any], top_k: int = 5, coverage: float | None = None) -> list[Prediction]:
        """The `top_k` most likely classes of each image, each as (name, probability).

        With `coverage` instead the set of classes that holds the true one in this share of the cases; raises UserError
        if the model was exported without sets.
        """
        count = len(self.class_names)
        answers: list[Prediction] = []
        for pixels in self._read(pictures, 32):
            logits, novelty = split_outputs(self.outputs(pixels), count)
            probabilities = self.activation(logits)
            for row, indices, score in zip(
                probabilities, likeliest(probabilities, top_k, self.sets, coverage), novelty, strict=True
            ):
                picture = pictures[len(answers)]
                answers.append(
                    Prediction(
                        [(self.class_names[index], float(row[index])) for index in indices],
                        str(picture) if isinstance(picture, str | Path) else None,
                        score,
                    )
                )
        return answers


def _open(picture: Any, place: int, preprocessing: Preprocessing) -> Image.Image | Planes:
    try:
        return preprocessing.open(picture)
    except BadPicture as error:
        name = str(picture) if isinstance(picture, str | Path) else f"image {place + 1}"
        raise BadPicture(f"{name}: {error.reason}") from error


def split_outputs(outputs: np.ndarray, classes: int) -> tuple[np.ndarray, list[float | None]]:
    """The logits (N, C) in the outputs of an engine, and the novelty of each image, which has a further column if any.

    Args:
        outputs: float32 (N, C) or (N, C + 1).
        classes: C.
    """
    novelty = outputs[:, classes].tolist() if outputs.shape[1] > classes else [None] * len(outputs)
    return outputs[:, :classes], novelty


def softmax(logits: np.ndarray) -> np.ndarray:
    """float32 (N, C) probabilities of float32 (N, C) logits."""
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """float32 (N, C) probabilities of (N, C) logits of independent labels."""
    powers = np.exp(-np.abs(logits))
    return np.where(logits >= 0, 1 / (1 + powers), powers / (1 + powers)).astype(np.float32)


def top_classes(probabilities: np.ndarray, top_k: int) -> np.ndarray:
    """int (N, k): indices of the highest of (N, C) probabilities, highest first; ties go to the lower index."""
    return np.argsort(-probabilities, axis=1, kind="stable")[:, :top_k]


def likeliest(
    probabilities: np.ndarray, top_k: int, sets: ClassSets | None = None, coverage: float | None = None
) -> list[list[int]]:
    """Indices of the `top_k` likeliest classes of (N, C) probabilities, or of those in the set with `coverage`.

    Raises UserError for a coverage without sets.
    """
    if coverage is None:
        found: list[list[int]] = top_classes(probabilities, top_k).tolist()
        return found
    if sets is None:
        raise UserError(NO_SETS)
    sizes = sets.sizes(probabilities, coverage)
    order = top_classes(probabilities, int(sizes.max(initial=1)))
    return [row[:size].tolist() for row, size in zip(order, sizes, strict=True)]


def load(
    folder: str | Path,
    engine: str | None = None,
    device: str | None = "cpu",
    threads: int | None = None,
    *,
    views: str | None = None,
) -> PortableModel:
    """The portable model in `folder`.

    Args:
        folder: a run's `model/`, or a model on the Hugging Face hub: hf-hub:user/name.
        engine: 'torch', 'onnx' (works without torch), or 'auto', the faster of the available ones; None: 'torch', or
            that of the format of an exported model.
        device: for torch; None: a GPU if there is one.
        threads: for ONNX Runtime; all cores if None.
        views: of each image whose features are averaged, see `imgcls.models.views`; needs torch. None: the model's own.

    Raises:
        UserError: there is no model, it is damaged, a newer imgcls wrote it, or the engine is not installed.
    """
    folder = fetch_model(str(folder)) if is_on_hub(folder) else Path(folder)
    description = read_description(folder)
    try:
        names, architecture = description["class_names"], Architecture.from_dict(description["architecture"])
        named = isinstance(names, list) and all(isinstance(name, str) for name in names)
        if not named or len(names) != architecture.num_classes:
            raise ValueError(f"class_names are not {architecture.num_classes} names")
        thresholds = description.get("thresholds")
        if thresholds is not None and len(list(map(float, thresholds))) != len(names):
            raise ValueError(f"thresholds are not {len(names)} numbers")
        if views is not None and views != architecture.views:
            check_views(views, multilabel=thresholds is not None)
            if engine == "onnx":
                raise UserError(f"views={views}: {ONNX} computes views={architecture.views}. Use engine=torch.")
            architecture, engine = replace(architecture, views=views), "torch"
        engine = engine or ("auto" if description.get("export") else "torch")
        return PortableModel(
            description=description,
            class_names=tuple(names),
            preprocessing=Preprocessing.from_dict(description["preprocessing"]),
            engine=create_engine(folder, architecture, engine, device, threads, description),
            sets=ClassSets.from_dict(description["sets"]) if description.get("sets") else None,
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{folder / DESCRIPTION} is damaged: {first_line(error)}.") from error
