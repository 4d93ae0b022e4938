"""Why the model errs on the validation images, and what correcting their images and labels is worth."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from imgcls.audit import causes
from imgcls.audit.causes import assign, find_pairs
from imgcls.audit.findings import Audit, Cause, Errors, groups_of
from imgcls.audit.unlike import find_unlike
from imgcls.audit.worth import Gain, Worth

FEWEST_ADDED = 4
"""Images that must be unlike all others, to measure what more of them would gain."""
See = Callable[[np.ndarray], Tensor]
"""From positions of validation images, int64 (n,), to the features of the whole images, float32 (n, F)."""


def explain_errors(
    found: Audit,
    features: Tensor,
    penalty: float | None,
    predicted: np.ndarray | None = None,
    see_whole: See | None = None,
    seed: int = 0,
) -> Errors:
    """A cause for each validation error, and what correcting the images of each cause is worth.

    Args:
        found: the audit so far.
        features: float32 (N, F), of all images.
        penalty: of the head that measures the gains; None: chosen by thirds of the training images.
        predicted: int64 (M,), the model's classes of the validation images; None: those of that head.
        see_whole: features of whole validation images; None: it is not asked what the crop cuts off.
        seed: of random choices.
    """
    source = found.source
    assert source.val is not None
    train, val = slice(0, len(source.train)), slice(len(source.train), len(source.train) + len(source.val))
    given, classes = found.given, len(source.class_names)
    worth = Worth(features[train], given[train], features[val], given[val], classes, penalty)
    predicted = worth.predicted if predicted is None else predicted
    likeliest, wrong = found.probabilities.argmax(axis=1), found.labels.wrong
    pairs = find_pairs(given[~wrong], likeliest[~wrong], classes)
    contradictory, poor = found.contradictory, np.array([bool(text) for text in found.poor])
    unlike = np.zeros(len(source.val), dtype=bool)
    errors = np.flatnonzero(predicted != given[val])
    unlike[errors] = find_unlike(features[val][torch.from_numpy(errors)], features[train], seed=seed)
    crop, cut = worth.see_whole(see_whole, seed) if see_whole is not None else (None, np.zeros(len(unlike), dtype=bool))
    why = assign(
        given[val],
        predicted,
        [
            (causes.WRONG_LABEL, wrong[val]),
            (causes.CONTRADICTORY, contradictory[val]),
            (causes.UNLIKE, unlike),
            (causes.CROP, cut),
            (causes.POOR, poor[val]),
        ],
        pairs,
    )

    def relabel(labels: np.ndarray) -> Gain:
        return worth.relabel(labels[train], labels[val])

    confusable = sorted({label for pair in pairs for label in pair})
    rows = np.flatnonzero(why == causes.UNLIKE)
    measures: dict[str, tuple[str, Callable[[], Gain | None]]] = {
        causes.WRONG_LABEL: (
            f"correct {wrong[train].sum():,} training and {wrong[val].sum():,} validation labels",
            lambda: relabel(np.where(wrong, found.labels.suggested, given)),
        ),
        causes.CONTRADICTORY: ("give {count} copies the label of the others", lambda: relabel(_agreed(found))),
        causes.UNLIKE: (
            "train with {count} more images like these",
            lambda: worth.add(rows, seed) if len(rows) >= FEWEST_ADDED else None,
        ),
        causes.CROP: ("evaluate whole images (data.fit=squash), of which {count} more are right", lambda: crop),
        causes.POOR: (
            "replace {count} poor images by usual ones",
            lambda: worth.leave_out(np.flatnonzero(poor[train]), np.flatnonzero(why == causes.POOR)),
        ),
        causes.PAIR: (
            "twice the {count} training images of these classes, at most",
            lambda: worth.double(confusable, seed),
        ),
        causes.UNEXPLAINED: ("twice the {count} training images, at most", lambda: worth.double(range(classes), seed)),
    }
    correctable = {causes.WRONG_LABEL: wrong.any(), causes.CONTRADICTORY: contradictory.any()}
    by_cause = [
        Cause(name, np.flatnonzero(why == name), measures[name][0], measures[name][1]())
        for name in causes.CAUSES
        if correctable.get(name) or (why == name).any()
    ]
    return Errors(
        predicted,
        tuple(by_cause),
        float((predicted == given[val]).mean()),
        float(worth.right.mean()),
        tuple(sorted(pairs)),
    )


def _agreed(found: Audit) -> np.ndarray:
    """int64 (N,): the labels, where copies that have several all have the likeliest of them."""
    labels = found.given
    group_of = groups_of(found.source, tuple(copy for copy in found.copies if copy.contradicts), by_source=False)
    for group in np.unique(group_of[found.contradictory]):
        rows = np.flatnonzero(group_of == group)
        offered = np.unique(labels[rows])
        labels[rows] = offered[found.probabilities[rows][:, offered].mean(axis=0).argmax()]
    return labels
