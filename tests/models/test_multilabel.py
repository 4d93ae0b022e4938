"""Loss, metrics and thresholds of images with several labels."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from imgcls.models.choices import MULTILABEL_METRICS
from imgcls.models.multilabel import choose_thresholds, label_losses, label_metrics, update_label_metrics


def batch(count: int = 40, classes: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, classes, generator=generator), torch.randint(0, 2, (count, classes), generator=generator)


def test_the_loss_is_binary_cross_entropy() -> None:
    logits, labels = batch()
    expected = F.binary_cross_entropy_with_logits(logits, labels.float(), reduction="none").mean(1)
    assert torch.allclose(label_losses(logits, labels), expected)
    smooth = F.binary_cross_entropy_with_logits(logits, labels * 0.8 + 0.1, reduction="none").mean(1)
    assert torch.allclose(label_losses(logits, labels, label_smoothing=0.2), smooth)
    weights = torch.tensor([1.0, 0.0, 0.0, 0.0])
    first = label_losses(logits[:, :1], labels[:, :1]) / 4
    assert torch.allclose(label_losses(logits, labels, class_weights=weights), first)


def test_the_asymmetric_loss_is_the_papers() -> None:
    """Equation 4 to 6 of Ridnik et al. 2021, image by image; absent labels far below the margin cost nothing."""
    logits, labels = batch()
    p = torch.sigmoid(logits.double())
    shifted = (p - 0.05).clamp(min=0)
    losses = -labels * (1 - p) * p.log() - (1 - labels) * shifted**4 * (1 - shifted).log()
    ours = label_losses(logits, labels, focal_gamma=1.0, negative_gamma=4.0)
    assert torch.allclose(ours, losses.mean(1).float(), atol=1e-6)
    assert label_losses(torch.full((1, 3), -4.0), torch.zeros(1, 3), negative_gamma=4.0).item() == 0


def test_metrics_by_the_thresholds() -> None:
    logits, labels = batch()
    metrics = label_metrics(4, "val/")
    assert set(metrics.keys()) == set(MULTILABEL_METRICS)
    for part in (slice(0, 15), slice(15, 15), slice(15, 40)):
        losses = label_losses(logits[part], labels[part])
        update_label_metrics(metrics, logits[part], labels[part], losses, torch.full((4,), 0.7))
    values = metrics.compute()
    answers = torch.sigmoid(logits) >= 0.7
    hits = (answers & (labels == 1)).sum()
    assert values["val/micro_f1"].item() == pytest.approx((2 * hits / (answers.sum() + labels.sum())).item())
    assert values["val/subset_accuracy"].item() == pytest.approx((answers == labels).all(1).float().mean().item())
    assert values["val/loss"].item() == pytest.approx(label_losses(logits, labels).mean().item())


def f1(answers: np.ndarray, labels: np.ndarray) -> float:
    return 2 * (answers & labels).sum() / (answers.sum() + labels.sum())


def test_thresholds_have_the_highest_f1_or_what_was_required() -> None:
    rng = np.random.default_rng(0)
    labels = rng.random((200, 3)) < [0.5, 0.1, 0.0]
    probabilities = np.clip(0.4 * labels + 0.6 * rng.random((200, 3)), 0, 1).astype(np.float32).round(2)
    chosen = choose_thresholds(probabilities, labels)
    assert chosen[2] == 0.5, "no positives"
    for label in range(2):
        best = max(f1(probabilities[:, label] >= t, labels[:, label]) for t in np.linspace(0, 1, 201))
        assert f1(probabilities[:, label] >= chosen[label], labels[:, label]) == pytest.approx(best)
    for aim in ("precision", "recall"):
        answers = probabilities[:, 0] >= choose_thresholds(probabilities, labels, aim, 0.95)[0]
        hits = (answers & labels[:, 0]).sum()
        precision, recall = hits / answers.sum(), hits / labels[:, 0].sum()
        assert (precision if aim == "precision" else recall) >= 0.95
        assert min(precision, recall) > 0.2
