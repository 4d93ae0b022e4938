"""The audit of a data set: everything that the modules of this package look for, together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch

from imgcls.audit.errors import See, explain_errors
from imgcls.audit.findings import Audit, Copy, groups_of
from imgcls.audit.hidden_groups import find_hidden_groups
from imgcls.audit.labels import find_wrong_labels
from imgcls.audit.out_of_fold import out_of_fold
from imgcls.audit.quality import find_poor_images
from imgcls.data.checks import Findings
from imgcls.data.duplicates import find_copies
from imgcls.data.sources import Source


def audit(
    source: Source,
    features: Mapping[str, np.ndarray],
    findings: Mapping[str, Findings],
    *,
    own_features: int | None = None,
    sharpness: np.ndarray | None = None,
    input_side: int = 224,
    predicted: np.ndarray | None = None,
    see_whole: See | None = None,
    seed: int = 0,
) -> Audit:
    """Audit a data set by the features of its images, of a backbone that was not trained on their labels.

    Args:
        source: images with one label each.
        features: split to float32 (n, F). All of them judge the labels.
        own_features: how many of them, the last ones, are the backbone's own, by which all else is judged; None: all.
        findings: split to what is known of its files, see `checks.inspect`.
        sharpness: float32 (N,), of the images of all splits.
        input_side: shorter side of the model's input, px.
        predicted: int64 (M,), the model's classes of the validation images; None: those of a head on the features.
        see_whole: features of whole validation images; None: it is not asked what the crop cuts off.
        seed: of all random choices.
    """
    splits = source.splits()
    values = torch.from_numpy(np.concatenate([features[name] for name in splits]))
    labels = np.concatenate([split.labels for split in splits.values()])
    known = Findings(
        *(np.concatenate(columns) for columns in zip(*(findings[name].columns for name in splits), strict=True))
    )
    classes = len(source.class_names)
    copies = tuple(Copy(kind, i, j, bool(labels[i] != labels[j])) for kind, i, j in find_copies(known))
    judged = out_of_fold(values, labels, classes, groups=groups_of(source, copies), seed=seed)
    suspects = find_wrong_labels(judged.probabilities, labels)
    own = values if own_features in (None, values.shape[1]) else values[:, -own_features:].contiguous()
    found = Audit(
        source,
        judged.probabilities,
        suspects,
        copies,
        tuple(find_poor_images(known, sharpness, input_side)),
        tuple(find_hidden_groups(own.numpy(), np.where(suspects.wrong, -1, labels), classes, seed=seed)),
        None,
    )
    if source.val is None or not len(source.val):
        return found
    penalty = judged.penalty if own is values else None
    errors = explain_errors(found, own, penalty, predicted, see_whole, seed)
    return replace(found, errors=errors)
