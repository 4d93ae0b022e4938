"""A search space as a tuning job's parameter ranges, and the texts that a trial gets as values again.

A container's toolkit hands each hyperparameter to the script as `--key value`, and as a variable of the environment:
so keys are made of letters, digits and underscores, and values of choices are JSON, which the toolkit decodes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from imgcls.errors import UserError
from imgcls.sweeps.space import Choice, Dimension, Numbers, Space

MOST_RANGES = 30
MOST_VALUES = 30  # of a categorical range
LONGEST = 256  # characters of a key or value
TAKEN = re.compile(r"_|sagemaker_|\d")  # beginnings of keys that the toolkit keeps for itself, or is no name


class Ranges:
    """The dimensions of `space` in AWS's form.

    Args:
        space: what is searched over.
        every_value: all as lists of values, as a grid needs them.

    Raises UserError for a space that AWS does not take.
    """

    def __init__(self, space: Space, *, every_value: bool = False) -> None:
        self.space = space
        if len(space.dimensions) > MOST_RANGES:
            raise UserError(f"{len(space.dimensions)} options are searched over; a tuning job takes {MOST_RANGES}.")
        self.request: dict[str, list[dict[str, Any]]] = {
            "IntegerParameterRanges": [],
            "ContinuousParameterRanges": [],
            "CategoricalParameterRanges": [],
        }
        """The field ParameterRanges."""
        for dimension in space:
            key = self.keys[dimension.name]
            if len(key) > LONGEST:
                raise UserError(f"{dimension.name}: a name of more than {LONGEST} characters is too long for AWS.")
            if isinstance(dimension, Numbers) and not every_value and _is_range(dimension):
                kind = "IntegerParameterRanges" if dimension.whole else "ContinuousParameterRanges"
                self.request[kind].append(_range(dimension, key))
            else:
                values = [value_of(dimension, value) for value in _values(dimension)]
                self.request["CategoricalParameterRanges"].append({"Name": key, "Values": values})

    @cached_property
    def keys(self) -> dict[str, str]:
        """The option's name to its key."""
        return keys_of(self.space.names)

    def values(self, texts: Mapping[str, str]) -> dict[str, Any]:
        """The typed values, by option, of a trial's hyperparameters, by key. Raises UserError for a missing one."""
        found = {}
        for name, key in self.keys.items():
            if key not in texts:
                raise UserError(f"The trial has no value of {name} (--{key}).")
            found[name] = self.space[name].read(_bare(texts[key]))
        return found


def keys_of(names: Sequence[str]) -> dict[str, str]:
    """A key for each name that is safe as an argument and as a shell variable.

    >>> keys_of(["optim.lr", "optim_lr", "model", "+callbacks.x.y", "sagemaker_a"])
    {'optim.lr': 'optim_lr', 'optim_lr': 'optim_lr_2', 'model': 'model', '+callbacks.x.y': 'callbacks_x_y', \
'sagemaker_a': 'option_sagemaker_a'}
    """
    keys: dict[str, str] = {}
    for name in names:
        key = re.sub(r"[^A-Za-z0-9]+", "_", name.lstrip("+~")) or "option"
        if TAKEN.match(key) or len(key) == 1:
            key = f"option_{key}"
        taken, number, start = {one.upper() for one in keys.values()}, 2, key
        while key.upper() in taken:  # variables of the environment are in capitals
            key, number = f"{start}_{number}", number + 1
        keys[name] = key
    return keys


def value_of(dimension: Dimension, value: Any) -> str:
    """A value of a categorical range: its override as JSON, which comes back as the same text. Raises UserError."""
    text = json.dumps(dimension.text(value))
    if len(text) > LONGEST:
        raise UserError(f"{dimension.name}={text[:40]}…: AWS takes values of at most {LONGEST} characters.")
    return text


def _is_range(numbers: Numbers) -> bool:
    """Whether AWS has a range for it: it knows no steps but 1 of whole numbers."""
    return numbers.low < numbers.high and (numbers.step is None or (numbers.whole and numbers.step == 1))


def _range(numbers: Numbers, key: str) -> dict[str, str]:
    low, high = numbers.text(numbers.low), numbers.text(numbers.high)
    scale = "Logarithmic" if numbers.log else "Linear"
    return {"Name": key, "MinValue": low, "MaxValue": high, "ScalingType": scale}


def _values(dimension: Dimension) -> Sequence[Any]:
    if isinstance(dimension, Numbers) and dimension.low == dimension.high:
        return [dimension.low]
    if isinstance(dimension, Numbers) and dimension.step is None:
        raise UserError(
            f"{dimension.name}: search.tuning.strategy=grid needs single values. "
            "Use choice(…) or range(…), not interval(…)."
        )
    if dimension.count > MOST_VALUES:
        raise UserError(
            f"{dimension.name} has {dimension.count} values; a tuning job takes {MOST_VALUES} of a choice"
            f"{' or a range with steps' if not isinstance(dimension, Choice) else ''}. Give fewer, or an interval."
        )
    return dimension.grid()


def _bare(text: str) -> str:
    """The text in a JSON string, or `text` as it is."""
    if text.startswith('"'):
        try:
            return str(json.loads(text))
        except ValueError:
            return text
    return text
