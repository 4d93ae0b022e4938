"""The loss of a student that learns the answers of a teacher besides the labels."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from imgcls.models.losses import picture_losses


def join(labels: Tensor, answers: Tensor) -> Tensor:
    """float32 (N, 2C): distributions of labels, (N, C), zero for an image without one, and a teacher's, (N, C)."""
    return torch.cat([labels.float(), answers.float()], dim=1)


def hard_labels(labels: Tensor, num_classes: int) -> Tensor:
    """int64 (N,): the class of labels (N,), (N, C) or (N, 2C); the teacher's answer of an image without a label."""
    if labels.ndim == 1:
        return labels
    own, answers = labels[:, :num_classes], labels[:, num_classes:]
    return (own + 1e-3 * answers if answers.shape[1] else own).argmax(dim=1)


class Distillation(nn.Module):
    """The loss of each image against its label and a teacher's answer (Hinton et al. 2015).

    (1 - share) of the label loss and `share` of T² KL(teacher ∥ student), both softened by the temperature T; for an
    image without a label, the latter alone. T² keeps the size of its gradients.

    Args:
        share: of the teacher, from 0 to 1.
        temperature: T, by which both logits are divided. `join` is given the teacher's softened probabilities.
        class_weights: float32 (C,), a factor for each class in the label loss.
        **label_loss: further arguments of `imgcls.models.losses.picture_losses`.
    """

    class_weights: Tensor | None

    def __init__(
        self, share: float, temperature: float, class_weights: Tensor | None = None, **label_loss: float
    ) -> None:
        super().__init__()
        self.share, self.temperature = share, temperature
        self.register_buffer("class_weights", class_weights, persistent=False)
        self._options = label_loss

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """float32 (N,) from logits, (N, C), and labels made by `join`, float32 (N, 2C)."""
        own, answers = labels.float().chunk(2, dim=1)
        labelled = own.sum(dim=1)  # 0 or 1; between them where images are mixed
        target = own / labelled.clamp(min=1e-6)[:, None]
        label_losses = picture_losses(logits, target, class_weights=self.class_weights, **self._options)
        student = F.log_softmax(logits.float() / self.temperature, dim=1)
        divergence = (torch.xlogy(answers, answers) - answers * student).sum(dim=1)
        weight = (1 - self.share) * labelled
        return weight * label_losses + (1 - weight) * self.temperature**2 * divergence
