"""Wrong labels, by what heads that have not seen an image think of its label.

The images are ranked as in confident learning (Northcutt, Jiang and Chuang, JAIR 2021), by the out-of-fold probability
of the given label. How many labels are wrong is estimated as a mixture proportion (Blanchard, Lee and Scott, JMLR
2010): counting the images that are confidently of another class, as confident learning does, takes hard images for
wrong labels where the classes are hard to tell apart.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

SHARES = (0.5, 0.6, 0.7, 0.8, 0.9)
"""Shares of the wrong labels that are looked for at least, to estimate how many there are."""
CAUTION = 2.0
"""Standard errors that are added to an estimate before the smallest is chosen."""
MOST_ROWS = 20_000
"""Images whose probabilities of other classes are compared."""


@dataclass(frozen=True, eq=False)
class LabelFindings:
    """How likely the label of each of N images is wrong.

    Attributes:
        scores: float64 (N,): larger where a wrong label is likelier.
        suggested: int64 (N,): the class that the image has more likely than any other but the given one.
        wrong: bool (N,): the labels that are taken for wrong ones.
    """

    scores: np.ndarray
    suggested: np.ndarray
    wrong: np.ndarray


def find_wrong_labels(probabilities: np.ndarray, labels: np.ndarray) -> LabelFindings:
    """The labels that contradict out-of-fold `probabilities`.

    As many are taken for wrong as `estimate_share` says, those with the least probability first.

    Args:
        probabilities: (N, C), each row by a model that has not seen the image.
        labels: int64 (N,), the given ones.
    """
    rows = np.arange(len(labels))
    own = probabilities[rows, labels].astype(np.float64)
    others = probabilities.copy()
    others[rows, labels] = -1
    suggested = others.argmax(axis=1)
    wrong = np.zeros(len(labels), dtype=bool)
    wrong[np.argsort(own, kind="stable")[: round(estimate_share(probabilities, labels) * len(labels))]] = True
    return LabelFindings(-own, suggested, wrong & (others.max(axis=1, initial=-1) > own))


def estimate_share(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """The share of wrong labels, of `probabilities` (N, C) and `labels` (N,) as in `find_wrong_labels`.

    A wrong label has the probability that other classes of an image have. If half of these are below a limit, so are
    half of the wrong labels, and the share is at most twice that of the labels below it. The limit with the smallest
    cautious estimate has the fewest hard images among them.
    """
    count = len(labels)
    if not count or probabilities.shape[1] < 2:
        return 0.0
    some = slice(None, None, -(-count // MOST_ROWS))
    given = np.zeros(probabilities[some].shape, dtype=bool)
    given[np.arange(len(given)), labels[some]] = True
    own = probabilities[np.arange(count), labels]
    limits = np.quantile(probabilities[some][~given], SHARES)
    below = (own[:, None] <= limits).sum(axis=0)
    cautious = (below + CAUTION * np.sqrt(below + 1)) / SHARES
    return float(min(1.0, (below / SHARES)[cautious.argmin()] / count))
