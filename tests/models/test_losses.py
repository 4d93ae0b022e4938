"""The loss of each image, compared with explicit formulas."""

import pytest
import torch
import torch.nn.functional as F

from imgcls.models.losses import picture_losses

LOGITS = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 1, 2, 3, 3, 3])


def test_plain_cross_entropy() -> None:
    assert torch.allclose(picture_losses(LOGITS, LABELS), -LOGITS.log_softmax(1)[range(6), LABELS])


@pytest.mark.parametrize(
    "options", [{}, {"label_smoothing": 0.2}, {"class_weights": torch.tensor([1.0, 2, 3, 4])}, {"focal_gamma": 2.0}]
)
def test_hard_labels_are_soft_labels_with_all_weight_on_one_class(options: dict) -> None:
    soft = F.one_hot(LABELS, 4).float()
    assert torch.allclose(picture_losses(LOGITS, LABELS, **options), picture_losses(LOGITS, soft, **options), atol=1e-6)


def test_class_weights_are_factors_and_do_not_depend_on_the_batch() -> None:
    weights = torch.tensor([1.0, 2, 3, 4])
    whole = picture_losses(LOGITS, LABELS, class_weights=weights)
    assert torch.allclose(whole, weights[LABELS] * picture_losses(LOGITS, LABELS))
    # torch's own mean divides by the weights in the batch: 4 and 1 weigh the same in batches of one
    assert F.cross_entropy(LOGITS[:1], LABELS[:1], weights) != pytest.approx(weights[0] * 2 * float(whole[0]))
    assert torch.allclose(picture_losses(LOGITS[4:], LABELS[4:], class_weights=weights), whole[4:])


def test_focusing_reduces_the_loss_of_correct_images() -> None:
    probability = LOGITS.softmax(1)[range(6), LABELS]
    expected = (1 - probability) ** 2 * -probability.log()
    assert torch.allclose(picture_losses(LOGITS, LABELS, focal_gamma=2.0), expected, atol=1e-6)


def test_focusing_has_finite_gradients_for_perfect_predictions() -> None:
    logits = torch.tensor([[100.0, 0.0]], requires_grad=True)
    picture_losses(logits, torch.tensor([0]), focal_gamma=0.5).sum().backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


def test_half_precision_logits_are_summed_in_float32() -> None:
    assert picture_losses(LOGITS.bfloat16(), LABELS).dtype == torch.float32
