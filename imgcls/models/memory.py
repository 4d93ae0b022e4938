"""Heads that keep features of the training images instead of learning: classes can be added to them later.

Features are scaled to length 1 first, as in SimpleShot (Wang et al. 2019), so that their similarity is a cosine. The
score of a class depends on the images of this class alone, and is computed in products of one shape: a class that is
added later changes no bit of the scores of the others.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from imgcls.errors import UserError

MOST_VALUES = 2**28
"""The most values (images times features) that a head keeps, 1 GB."""
START_SCALE = 10.0


class Memory(nn.Module):
    """(N, F) features to (N, C) logits, from rows of unit features that `store` keeps.

    Args:
        in_features: number of features, F.
        rows: number of rows that are kept.

    Attributes:
        scale: by which similarities are multiplied; logits of cosines alone would never be confident. A parameter, so
            that the head can be measured by a training of rate 0.
        rows: float32 (rows, F).
    """

    rows: Tensor
    block: ClassVar[int]
    """The rows of a product: how a matrix product adds up its terms depends on its shape."""

    def __init__(self, in_features: int, rows: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(START_SCALE))
        self.register_buffer("rows", torch.zeros(rows, in_features))

    def forward(self, features: Tensor) -> Tensor:
        return self.scale * self.similarities(F.normalize(features.float(), dim=1))

    def similarities(self, units: Tensor) -> Tensor:
        """The similarity of (N, F) unit features to each class, (N, C); larger is more similar."""
        raise NotImplementedError

    def store(self, features: Tensor, labels: Tensor) -> None:
        """Keep the features, float32 (N, F), of the training images with these labels, int64 (N,)."""
        raise NotImplementedError

    def left_out(self, features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Similarities of stored images to the classes without themselves, (n, C), and their labels, (n,)."""
        raise NotImplementedError

    def extended(self, features: Tensor) -> Memory:
        """A copy with one more class, whose images have these features, float32 (n, F)."""
        raise NotImplementedError

    @property
    def head(self) -> dict[str, Any]:
        """The plain values from which `head_from_dict` builds these layers."""
        raise NotImplementedError

    def _products(self, units: Tensor) -> Tensor:
        """`units @ rows.T`, (N, rows), in products of one shape."""
        return torch.cat([units @ block.T for block in self.blocks()], dim=1)[:, : len(self.rows)]

    def blocks(self) -> Iterator[Tensor]:
        """The rows in parts of one size, the last one filled with zeros."""
        for start in range(0, max(1, len(self.rows)), self.block):
            part = self.rows[start : start + self.block]
            yield F.pad(part, (0, 0, 0, self.block - len(part))) if len(part) < self.block else part

    def _with_rows(self, rows: Tensor) -> Any:
        """A copy with other rows."""
        other = copy.deepcopy(self)
        other.rows = rows
        return other


class Prototypes(Memory):
    """Prototypical networks' classifier (Snell et al. 2017): the nearest class by the mean of its images.

    A logit is the negative squared distance to the mean of the unit features of the class. Hard to beat with
    one or two images of a class (Wang et al. 2019).
    """

    block = 64

    def __init__(self, in_features: int, num_classes: int) -> None:
        super().__init__(in_features, num_classes)

    def similarities(self, units: Tensor) -> Tensor:
        # of unit features, apart from a constant that all classes share: -|x - p|² = 2 x·p - |p|² - 1
        return 2 * self._products(units) - self.squares()

    def squares(self) -> Tensor:
        """The squared length of each mean, (C,)."""
        return torch.cat([block.square().sum(dim=1) for block in self.blocks()])[: len(self.rows)]

    def store(self, features: Tensor, labels: Tensor) -> None:
        self.rows.copy_(self._means(features, labels)[0])

    def _means(self, features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        units = F.normalize(features, dim=1)
        counts = torch.bincount(labels, minlength=len(self.rows))[:, None]
        return units.new_zeros(self.rows.shape).index_add_(0, labels, units) / counts.clamp(min=1), counts

    def left_out(self, features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        means, counts = self._means(features, labels)
        chosen = torch.nonzero(counts[labels, 0] > 1)[:, 0]
        units, labels = F.normalize(features[chosen], dim=1), labels[chosen]
        scores = 2 * units @ means.T - means.square().sum(dim=1)
        count = counts[labels].to(means)
        own = (count * means[labels] - units) / (count - 1)
        scores[torch.arange(len(labels)), labels] = 2 * (units * own).sum(dim=1) - own.square().sum(dim=1)
        return scores, labels

    def extended(self, features: Tensor) -> Prototypes:
        mean = F.normalize(features, dim=1).mean(dim=0, keepdim=True)
        return self._with_rows(torch.cat([self.rows, mean]))

    @property
    def head(self) -> dict[str, Any]:
        return {"kind": "prototype"}


class Neighbours(Memory):
    """The nearest neighbour rule (Cover and Hart 1967), with the `k` nearest images of each class.

    A logit is the mean cosine to these images. With `k=1` the predicted class is that of the nearest image. A vote
    among the nearest images of all classes would change with each class that is added, and was less accurate.

    Args:
        in_features: number of features, F.
        images: number of images of each class.
        k: number of neighbours; of a class with fewer images all.
    """

    images: Tensor
    """int64 (C,): number of images of each class; in checkpoints, because the configuration does not count them."""
    table: Tensor
    """int64 (C, most images of a class): the rows of each class; the row after the last where it has fewer."""
    block = 512

    def __init__(self, in_features: int, images: Sequence[int], k: int) -> None:
        super().__init__(in_features, sum(images))
        self.counts, self.k = list(images), k
        self.register_buffer("images", torch.tensor(self.counts))
        self.register_buffer("table", self._make_table(), persistent=False)

    def _make_table(self) -> Tensor:
        table = torch.full((len(self.counts), max([self.k, *self.counts])), sum(self.counts))
        start = 0
        for label, count in enumerate(self.counts):
            table[label, :count] = torch.arange(start, start + count)
            start += count
        return table

    def similarities(self, units: Tensor) -> Tensor:
        return self._nearest(F.pad(self._products(units), (0, 1), value=-2.0))

    def _nearest(self, products: Tensor) -> Tensor:
        """The mean of the k largest of each class, of (N, rows + 1) products, the last of which stands for no image."""
        best = products[:, self.table.flatten()].unflatten(1, self.table.shape).topk(self.k, dim=2).values
        present = (best > -1.5).to(best)
        parts = best * present
        total, count = parts[..., 0], present[..., 0]
        for place in range(1, self.k):  # in this order, however many classes there are
            total, count = total + parts[..., place], count + present[..., place]
        return torch.where(count > 0, total / count.clamp(min=1), -1.0)

    def store(self, features: Tensor, labels: Tensor) -> None:
        order = torch.argsort(labels, stable=True)
        self._resize(torch.bincount(labels, minlength=len(self.counts)).tolist())
        self.rows = F.normalize(features[order], dim=1).to(self.scale.device)

    def _resize(self, counts: list[int]) -> None:
        self.counts = counts
        self.images, self.table = torch.tensor(counts).to(self.images), self._make_table().to(self.images)

    def left_out(self, features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        order = torch.argsort(labels, stable=True)
        units, sorted_labels = F.normalize(features[order], dim=1), labels[order]
        counts = torch.bincount(labels, minlength=len(self.counts))
        chosen = torch.nonzero(counts[sorted_labels] > 1)[:, 0]
        chosen = chosen[:: max(1, len(chosen) // 1000)]
        products = units[chosen] @ units.T
        products[torch.arange(len(chosen)), chosen] = -2.0
        return self._nearest(F.pad(products, (0, 1), value=-2.0)), sorted_labels[chosen]

    def extended(self, features: Tensor) -> Neighbours:
        other: Neighbours = self._with_rows(torch.cat([self.rows, F.normalize(features, dim=1)]))
        other._resize([*self.counts, len(features)])
        return other

    @property
    def head(self) -> dict[str, Any]:
        return {"kind": "knn", "k": self.k, "images": list(self.counts)}

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        images = state_dict.get(f"{prefix}images")
        if images is not None and images.shape == self.images.shape:
            self._resize([int(count) for count in images.tolist()])
            self.rows = self.rows.new_zeros(sum(self.counts), self.rows.shape[1])
        super()._load_from_state_dict(state_dict, prefix, *args)


def check_rows(count: int, width: int) -> None:
    """Raise UserError if a head cannot keep the features, of this width, of this number of images."""
    if count * width > MOST_VALUES:
        raise UserError(
            f"head=knn keeps the features of all training images: {count} times {width} are more than fit into memory "
            f"and an export ({MOST_VALUES // width} images). Use head=prototype or head=linear."
        )
