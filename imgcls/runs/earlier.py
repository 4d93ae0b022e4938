"""What earlier versions did where this one has another default, or an option that did not exist."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Earlier:
    """An option in earlier versions.

    Attributes:
        values: its defaults then; of an option that is new, what a run did without it.
        is_new: whether the first runs of imgcls 0.1.0 were stored without it.
    """

    values: tuple[Any, ...]
    is_new: bool = False


EARLIER: dict[str, Earlier] = {
    "preset.name": Earlier(("good",), is_new=True),
    "preset.freeze": Earlier(("none",), is_new=True),
    "preset.views": Earlier(("one",), is_new=True),
    "preset.average": Earlier(("start",), is_new=True),
    "preset.length": Earlier((10,), is_new=True),
    "preset.steps": Earlier((0,), is_new=True),
    "preset.longest": Earlier((10,), is_new=True),
    "data.batch_size": Earlier((64,)),
    "data.channels": Earlier((3,), is_new=True),
    "data.bits": Earlier((8,), is_new=True),
    "data.fit": Earlier(("crop",), is_new=True),
    "data.pad_colour": Earlier(([124, 116, 104],), is_new=True),
    "model.in_channels": Earlier((3,), is_new=True),
    "model.solve_head": Earlier((False,), is_new=True),
    "model.batch_norm": Earlier(("train",), is_new=True),
    "optim.lr": Earlier((2e-4,)),
    "optim.few_images": Earlier((0,), is_new=True),
    "loss.label_smoothing": Earlier((0.1,)),
    "export.known": Earlier((False,), is_new=True),
    "export.examples": Earlier((False,), is_new=True),
    "export.license": Earlier((None,), is_new=True),
    "checkpoint.average": Earlier(("none",), is_new=True),
}
"""By the dotted name of the option."""
NEW_GROUPS = ("preset",)


def complete(configuration: Mapping[str, Any]) -> dict[str, Any]:
    """`configuration` with the options that did not exist when it was written, and what runs did before."""
    completed = dict(configuration)
    for name, earlier in EARLIER.items():
        group, _, option = name.partition(".")
        if earlier.is_new and isinstance(completed.get(group, {} if group in NEW_GROUPS else None), Mapping):
            completed[group] = {option: earlier.values[0], **completed.get(group, {})}
    data = completed.get("data")
    if isinstance(data, dict) and "seed" in data:  # it used to seed the order too
        data.setdefault("order_seed", data["seed"])
    return completed
