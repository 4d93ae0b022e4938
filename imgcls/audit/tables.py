"""An audit as a table for a spreadsheet and `data=table`, as text for a terminal, and as plain data for the report."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from imgcls.audit.findings import Audit, Cause
from imgcls.system.tables import as_csv
from imgcls.system.text import printable

SHOWN = 24
"""Wrong labels with their images in the report."""
LISTED = 10
"""Of each kind on the terminal and in the report."""


def as_table(found: Audit, root: Path | None) -> str:
    """`audit.csv`: a row per image, the likeliest wrong labels first.

    `data=table` reads it with the same `data.root`; with `data.label_column=suggested` it trains with all suggestions.
    """
    splits, given = found.source.splits(), found.given
    names = [
        _file(split.files[row], root) if split.files else split.names[row]
        for split in splits.values()
        for row in range(len(split))
    ]
    in_split = [name for name, split in splits.items() for _ in range(len(split))]
    copies = {copy.image: copy for copy in found.copies}
    causes = _causes(found)
    extra = {name: _column(found, name) for name in ("groups", "weights")}
    order = np.lexsort([-found.labels.scores, ~found.labels.wrong])
    rows = []
    for image in order.tolist():
        label, suggested = int(given[image]), int(found.labels.suggested[image])
        copy = copies.get(image)
        row = {
            "file": names[image],
            "label": found.source.class_names[label],
            "suggested": found.source.class_names[suggested if found.labels.wrong[image] else label],
            "split": in_split[image],
            "wrong_label": int(found.labels.wrong[image]),
            "probability": round(float(found.probabilities[image, label]), 6),
            "suggested_probability": round(float(found.probabilities[image, suggested]), 6),
            "copy_of": names[copy.earlier] if copy else "",
            "copy": (f"{copy.kind}, another label" if copy.contradicts else copy.kind) if copy else "",
            "problem": found.poor[image],
            "error": causes.get(image, ""),
        }
        row |= {name.removesuffix("s"): column[image] for name, column in extra.items() if column is not None}
        rows.append(row)
    return as_csv(rows)


def _file(path: Path, root: Path | None) -> str:
    """The file from `root`, or its whole path where it is not in there."""
    whole = os.path.abspath(path)  # noqa: PTH100 - which keeps links
    inside = os.path.relpath(whole, root) if root is not None else whole
    return Path(whole if inside.startswith("..") else inside).as_posix()


def _column(found: Audit, name: str) -> list[Any] | None:
    """`groups` or `weights` of all images; None if a split has none."""
    parts = [getattr(split, name) for split in found.source.splits().values()]
    return None if any(part is None for part in parts) else [value for part in parts for value in part]


def _causes(found: Audit) -> dict[int, str]:
    """The cause of each validation error, by its place among all images."""
    before = len(found.source.train)
    by_cause = found.errors.by_cause if found.errors is not None else ()
    return {before + row: cause.name for cause in by_cause for row in cause.errors.tolist()}


def as_text(found: Audit) -> str:
    """What was found, for a terminal."""
    return printable("\n".join(_lines(found)))


def _lines(found: Audit) -> Iterator[str]:
    classes, given = found.source.class_names, found.given
    suspects = suspicious(found)
    yield f"labels      about {int(found.labels.wrong.sum()):,} of {len(given):,} are wrong; the first to look at:"
    yield from _some(
        (
            f"{_name(found, row)}: {classes[given[row]]}, rather {classes[found.labels.suggested[row]]}"
            f" ({found.probabilities[row, found.labels.suggested[row]]:.0%})"
            for row in suspects.tolist()
        ),
        max(LISTED, int(found.labels.wrong.sum())),
    )
    pairs = [copy for copy in found.copies if copy.contradicts]
    yield f"copies      {len(found.copies):,} of an earlier image, {len(pairs):,} with another label"
    yield from _some(
        f"{_name(found, copy.image)} ({classes[given[copy.image]]})"
        f" = {_name(found, copy.earlier)} ({classes[given[copy.earlier]]})"
        for copy in pairs
    )
    poor = [(row, text) for row, text in enumerate(found.poor) if text]
    kinds = Counter(kind for _, text in poor for kind in text.split(", "))
    counts = ", ".join(f"{count:,} {kind}" for kind, count in kinds.most_common())
    yield f"images      {len(poor):,} are poor{': ' if poor else ''}{counts}"
    yield from _some(f"{_name(found, row)}: {text}" for row, text in poor)
    for group in found.hidden:
        yield (
            f"groups      {classes[group.label]} may be two classes ({group.share:.0%} and {1 - group.share:.0%} of its"
            f" images): {_name(found, group.first[0])} and {_name(found, group.second[0])}"
        )
    yield from _error_lines(found)


def _error_lines(found: Audit) -> Iterator[str]:
    if found.errors is None or found.source.val is None:
        return
    count = sum(len(cause.errors) for cause in found.errors.by_cause)
    yield f"errors      {count:,} of {len(found.source.val):,} validation images, by cause:"
    width = max((len(cause.name) for cause in found.errors.by_cause), default=0)
    for cause in found.errors.by_cause:
        yield f"  {cause.name:{width}} {len(cause.errors):>5,}   {worth_of(cause)}"


def worth_of(cause: Cause) -> str:
    """What correcting the images of `cause` is worth, in a sentence."""
    if cause.gain is None:
        return "too few to measure what more of them would gain"
    gain, margin = 100 * cause.gain.gain, 100 * cause.gain.margin
    return f"{cause.remedy.format(count=f'{cause.gain.images:,}')}: {gain:+.1f} ± {margin:.1f} points"


def suspicious(found: Audit) -> np.ndarray:
    """int64: the images that are more likely of another class, those with the least likely labels first."""
    rows = np.arange(len(found.poor))
    better = found.probabilities[rows, found.labels.suggested] > found.probabilities[rows, found.given]
    return rows[better][np.argsort(-found.labels.scores[better], kind="stable")]


def _name(found: Audit, image: int) -> str:
    split, row = found.place(image)
    return found.source.splits()[split].names[row]


def _some(lines: Iterable[str], count: int | None = None) -> Iterator[str]:
    """The first of `lines`, and how many of `count` are left."""
    texts = list(lines)
    yield from (f"  {text}" for text in texts[:LISTED])
    if (left := (len(texts) if count is None else count) - LISTED) > 0:
        yield f"  … and {left:,} more"


def as_data(found: Audit, thumbnail: Callable[[int], str]) -> dict[str, Any]:
    """What the report shows, as plain data.

    Args:
        found: the audit.
        thumbnail: from the place of an image among all to a JPEG as base64.
    """
    classes, given, errors = found.source.class_names, found.given, found.errors
    wrong = int(found.labels.wrong.sum())
    suspects, poor = (
        suspicious(found)[: min(SHOWN, max(LISTED, wrong))],
        [row for row, text in enumerate(found.poor) if text],
    )

    def picture(row: int, note: str, predicted: str = "") -> dict[str, str]:
        label = classes[given[row]]
        text = f"{found.place(row)[0]}, {note}"
        return {
            "image": thumbnail(row),
            "file": _name(found, row),
            "label": label,
            "predicted": predicted or label,
            "note": text,
        }

    def suggestion(row: int) -> dict[str, str]:
        suggested = found.labels.suggested[row]
        return picture(row, f"{found.probabilities[row, suggested]:.0%}", classes[suggested])

    return {
        "images": len(given),
        "accuracy": float((found.probabilities.argmax(axis=1) == given).mean()),
        "wrong": {
            "found": wrong,
            "pictures": [suggestion(row) for row in suspects.tolist()],
        },
        "copies": {
            "found": len(found.copies),
            "rows": [_copy_row(found, copy) for copy in _contradictory_first(found)],
        },
        "poor": {"found": len(poor), "pictures": [picture(row, found.poor[row]) for row in poor[:LISTED]]},
        "hidden": [
            {
                "class": classes[group.label],
                "share": group.share,
                "groups": [[picture(row, "") for row in rows] for rows in (group.first, group.second)],
            }
            for group in found.hidden[:LISTED]
        ],
        "errors": None
        if errors is None
        else {
            "accuracy": errors.accuracy,
            "head_accuracy": errors.head_accuracy,
            "pairs": [[classes[one], classes[other]] for one, other in errors.pairs],
            "causes": [
                {"cause": cause.name, "errors": len(cause.errors), "worth": worth_of(cause)}
                for cause in errors.by_cause
            ],
        },
    }


def _contradictory_first(found: Audit) -> Sequence[Any]:
    return sorted(found.copies, key=lambda copy: not copy.contradicts)[:LISTED]


def _copy_row(found: Audit, copy: Any) -> dict[str, str]:
    classes, given = found.source.class_names, found.given
    return {
        "image": _name(found, copy.image),
        "label": classes[given[copy.image]],
        "is a copy of": _name(found, copy.earlier),
        "labelled": classes[given[copy.earlier]],
        "how": copy.kind,
    }
