"""A linear head on fixed features is a convex problem: it is solved instead of trained."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

PENALTIES = tuple(10 ** (-step / 2) for step in range(-1, 8))
"""The strengths of the L2 penalty that are compared, strongest first: each starts from the previous solution."""
PATIENCE = 2
"""The path of penalties ends where the held-out loss has risen this often."""
FOLDS = 3
CONSTANT = 0.05
"""A feature with less than this share of the median standard deviation is not scaled up any further."""
ITERATIONS, TOLERANCE = 200, 1e-6
CURVATURE = 0.1
"""About the second derivative of the loss by a logit, p (1 - p)."""
LOSS_MARGIN = 1.2
"""A penalty is chosen by accuracy among those whose loss is at most this many times the lowest."""

Pair = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Solution:
    """A linear layer, and how its penalty was chosen.

    Attributes:
        weight: float32 (C, F).
        bias: float32 (C,).
        penalty: strength of the L2 penalty on the weights, for standardised features.
        accuracy, loss: of the held-out images with this penalty.
    """

    weight: Tensor
    bias: Tensor
    penalty: float
    accuracy: float
    loss: float


@dataclass(frozen=True)
class _Score:
    hits: Tensor
    losses: Tensor
    weights: Tensor

    @property
    def accuracy(self) -> float:
        return float((self.hits * self.weights).sum() / self.weights.sum())

    @property
    def loss(self) -> float:
        return float((self.losses * self.weights).sum() / self.weights.sum())


def solve(
    features: Tensor,
    labels: Tensor,
    num_classes: int,
    *,
    held_out: Pair | None = None,
    class_weights: Tensor | None = None,
    image_weights: Tensor | None = None,
    by_loss: bool = False,
    seed: int = 0,
) -> Solution:
    """Multinomial logistic regression with an L2 penalty on the weights of standardised features.

    The penalty is the one with the best accuracy on the held-out images, among those whose loss is near the lowest:
    the accuracy of a hundred images is too noisy alone, and the penalty with the lowest loss is a little too weak.
    Without held-out images, each third of the images is classified by a regression on the other two. The solution
    for one penalty is the start for the next weaker one. The result depends on the arguments alone.

    Args:
        features: float32 (N, F).
        labels: int64 (N,).
        num_classes: number of classes, C.
        held_out: features (M, F) and labels (M,) of images that choose the penalty.
        class_weights: float32 (C,), the weight of each class's images in all means.
        image_weights: float32 (N,), further weights of the images.
        by_loss: choose the penalty with the lowest loss.
        seed: of the thirds.
    """
    ones = torch.ones(num_classes, device=features.device)
    weights = (ones if class_weights is None else class_weights.to(features))[labels]
    if image_weights is not None:
        weights = weights * image_weights

    def path(chosen: Tensor, test: Pair) -> Iterator[tuple[Regression, _Score]]:
        regression = Regression(features[chosen], labels[chosen], weights[chosen], num_classes)
        test_weights = (ones if class_weights is None else class_weights.to(features))[test[1]]
        for penalty in PENALTIES:
            regression.solve(penalty)
            yield regression, regression.score(*test, test_weights)

    everything = torch.arange(len(labels), device=features.device)
    if held_out is None and len(labels) < 2 * FOLDS:
        held_out = features, labels
    if held_out is not None:
        scores, layers = [], []
        for regression, score in path(everything, held_out):
            scores.append(score)
            layers.append(regression.layer())
            if _rises(scores):
                break
        place = _choose(scores, by_loss)
        layer = layers[place]
    else:
        scores = _scores_of_folds(path, features, labels, seed)
        place = _choose(scores, by_loss)
        regression = Regression(features, labels, weights, num_classes)
        for penalty in PENALTIES[: place + 1]:
            regression.solve(penalty)
        layer = regression.layer()
    return Solution(*layer, PENALTIES[place], scores[place].accuracy, scores[place].loss)


def _scores_of_folds(
    path: Callable[[Tensor, Pair], Iterator[tuple[Regression, _Score]]], features: Tensor, labels: Tensor, seed: int
) -> list[_Score]:
    """The score of each penalty over the held-out parts of all folds."""
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed)).to(labels.device)
    order = order[torch.sort(labels[order], stable=True).indices]  # each class is dealt evenly
    fold_of = torch.empty_like(order)
    fold_of[order] = torch.arange(len(order), device=order.device) % FOLDS
    tests = [torch.nonzero(fold_of == fold)[:, 0] for fold in range(FOLDS)]
    rests = [torch.nonzero(fold_of != fold)[:, 0] for fold in range(FOLDS)]
    paths = [path(rest, (features[test], labels[test])) for rest, test in zip(rests, tests, strict=True)]
    scores: list[_Score] = []
    for parts in zip(*paths, strict=True):
        hits, losses, weights = zip(*((part.hits, part.losses, part.weights) for _, part in parts), strict=True)
        scores.append(_Score(torch.cat(hits), torch.cat(losses), torch.cat(weights)))
        if _rises(scores):
            break
    return scores


def _choose(scores: list[_Score], by_loss: bool) -> int:
    """The index of the best score."""
    losses = [score.loss for score in scores]
    near = LOSS_MARGIN * min(losses)
    if by_loss:
        return losses.index(min(losses))
    return max((score.accuracy, -score.loss, index) for index, score in enumerate(scores) if score.loss <= near)[2]


def _rises(scores: list[_Score]) -> bool:
    losses = [score.loss for score in scores]
    return len(losses) > PATIENCE and min(losses[:-PATIENCE]) < min(losses[-PATIENCE:])


def scale_of(features: Tensor) -> Pair:
    """Mean and standard deviation, (F,), to standardise (N, F) features; almost constant ones are hardly scaled up."""
    std, mean = torch.std_mean(features, dim=0, correction=0)
    return mean, std.clamp(min=max(CONSTANT * float(std.median()), 1e-6))


class Regression:
    """The regression on given images, whose solution for one penalty is the start for the next.

    Args:
        features: float32 (N, F).
        labels: int64 (N,).
        weights: float32 (N,) of the images.
        num_classes: number of classes, C.
        start: the weight (C, F) and bias (C,) of another regression, from which the first search starts.
        standardise: whether the penalty is on the weights of standardised features, or of the features as they are.
    """

    def __init__(
        self,
        features: Tensor,
        labels: Tensor,
        weights: Tensor,
        num_classes: int,
        start: Pair | None = None,
        *,
        standardise: bool = True,
    ) -> None:
        if standardise:
            self.mean, self.std = scale_of(features)
            features = (features - self.mean) / self.std
            self.variances: Tensor | None = None
        else:
            self.mean, self.std = torch.zeros_like(features[0]), torch.ones_like(features[0])
            self.variances = torch.cat([features.var(dim=0, correction=0), self.std.new_ones(1)])
        self.features = features
        self.weights = (weights / weights.sum())[:, None]
        self.targets = F.one_hot(labels, num_classes).to(features) * self.weights
        self.parameters = features.new_zeros(num_classes, features.shape[1] + 1)  # weights, then biases
        if start is not None:
            weight, bias = start
            self.parameters[:, :-1] = weight * self.std
            self.parameters[:, -1] = bias + weight @ self.mean

    def solve(self, penalty: float) -> None:
        """Find the minimum for `penalty` by L-BFGS (Liu and Nocedal 1989), from the last one.

        Features that are not standardised are scaled for the search, such that the loss is about equally curved along
        each of them: with principal components, in half of the steps.
        """
        curvatures = None if self.variances is None else CURVATURE * self.variances + penalty
        scale = self.parameters.new_ones(()) if curvatures is None else curvatures.rsqrt()
        scaled = self.parameters / scale
        search = torch.optim.LBFGS(
            [scaled], max_iter=ITERATIONS, tolerance_change=TOLERANCE, line_search_fn="strong_wolfe"
        )

        def evaluate() -> float:
            value, slope = self._objective(scaled * scale, penalty)
            scaled.grad = slope * scale
            return value

        search.step(evaluate)
        self.parameters = scaled * scale

    def _objective(self, parameters: Tensor, penalty: float) -> tuple[float, Tensor]:
        weight, bias = parameters[:, :-1], parameters[:, -1]
        logs = torch.addmm(bias, self.features, weight.T).log_softmax(dim=1)
        value = 0.5 * penalty * weight.square().sum() - (self.targets * logs).sum()
        delta = logs.exp() * self.weights - self.targets
        slope = torch.addmm(weight, delta.T, self.features, beta=penalty)
        return float(value), torch.cat([slope, delta.sum(dim=0)[:, None]], dim=1)

    def layer(self) -> Pair:
        """Weight (C, F) and bias (C,) for features that are not standardised."""
        weight = self.parameters[:, :-1] / self.std
        return weight, self.parameters[:, -1] - weight @ self.mean

    def score(self, features: Tensor, labels: Tensor, weights: Tensor) -> _Score:
        weight, bias = self.layer()
        logits = torch.addmm(bias, features, weight.T)
        hits = (logits.argmax(dim=1) == labels).to(logits)
        return _Score(hits, F.cross_entropy(logits, labels, reduction="none"), weights)
