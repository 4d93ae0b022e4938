"""The loss of a student, compared with explicit formulas."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from imgcls.models.distillation import Distillation, hard_labels, join
from imgcls.models.losses import picture_losses

GENERATOR = torch.Generator().manual_seed(0)
LOGITS, TEACHER = torch.randn(2, 6, 4, generator=GENERATOR)
LABELS = torch.tensor([0, 1, 2, 3, 3, 3])
ONE_HOT = F.one_hot(LABELS, 4).float()


def test_the_loss_is_that_of_the_paper() -> None:
    answers = (TEACHER / 3).softmax(1)
    losses = Distillation(0.6, 3.0)(LOGITS, join(ONE_HOT, answers))
    divergence = F.kl_div((LOGITS / 3).log_softmax(1), answers, reduction="none").sum(1)
    assert torch.allclose(losses, 0.4 * picture_losses(LOGITS, LABELS) + 0.6 * 9 * divergence, atol=1e-6)
    same = Distillation(1.0, 3.0)(TEACHER, join(ONE_HOT, answers))
    assert torch.allclose(same, torch.zeros(6), atol=1e-5), "a student that answers like its teacher has no loss"


@pytest.mark.parametrize(
    "options", [{"label_smoothing": 0.2}, {"class_weights": torch.tensor([1.0, 2, 3, 4])}, {"focal_gamma": 2.0}]
)
def test_the_share_of_the_labels_has_all_options(options: dict) -> None:
    losses = Distillation(0.0, 2.0, **options)(LOGITS, join(ONE_HOT, TEACHER.softmax(1)))
    assert torch.allclose(losses, picture_losses(LOGITS, LABELS, **options), atol=1e-6)


def test_an_image_without_a_label_has_the_loss_of_the_teacher_alone() -> None:
    answers = (TEACHER / 2).softmax(1)
    unlabelled = join(torch.zeros(6, 4), answers)
    losses = Distillation(0.3, 2.0, label_smoothing=0.1)(LOGITS, unlabelled)
    assert torch.allclose(losses, Distillation(1.0, 2.0)(LOGITS, unlabelled))
    assert hard_labels(unlabelled, 4).tolist() == TEACHER.argmax(1).tolist()
    assert hard_labels(join(ONE_HOT, answers), 4).tolist() == LABELS.tolist()


def test_answers_without_doubt_have_finite_gradients() -> None:
    logits = (50 * ONE_HOT).requires_grad_()
    Distillation(0.5, 1.0)(logits, join(ONE_HOT, ONE_HOT)).sum().backward()
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()
