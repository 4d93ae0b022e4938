"""A search space as a tuning job's parameter ranges, and the values of a trial from its hyperparameters.

The container's toolkit passes each hyperparameter to the script as `--key value` and as an environment variable: so
keys consist of letters, digits and underscores, and values of choices are JSON, which the toolkit decodes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from imgcls.errors import UserError
from imgcls.sweeps.space import Choice, Dimension, Numbers, Space

MAX_RANGES = 30
MAX_VALUES = 30  # of a categorical range
MAX_CHARACTERS = 256  # of a key or value
RESERVED = re.compile(r"_|sagemaker_|\d")  # beginnings of keys that the toolkit reserves, or no name has


class Ranges:
    """The dimensions of `space` in AWS's form.

    Args:
        space: what is searched over.
        every_value: whether to list the values of each, as a grid needs them.

    Raises UserError for a space that AWS does not support.
    """

    def __init__(self, space: Space, *, every_value: bool = False) -> None:
        self.space, self.keys = space, keys_of(space.names)
        if len(space.dimensions) > MAX_RANGES:
            raise UserError(f"{len(space.dimensions)} options are searched over; a tuning job takes {MAX_RANGES}.")
        self.request: dict[str, list[dict[str, Any]]] = {
            "IntegerParameterRanges": [],
            "ContinuousParameterRanges": [],
            "CategoricalParameterRanges": [],
        }
        """The field ParameterRanges."""
        for dimension in space:
            key = self.keys[dimension.name]
            if len(key) > MAX_CHARACTERS:
                raise UserError(f"{dimension.name}: AWS takes names of up to {MAX_CHARACTERS} characters.")
            if isinstance(dimension, Numbers) and not every_value and _is_range(dimension):
                kind = "IntegerParameterRanges" if dimension.whole else "ContinuousParameterRanges"
                self.request[kind].append(_range(dimension, key))
            else:
                values = [value_of(dimension, value) for value in _values(dimension)]
                self.request["CategoricalParameterRanges"].append({"Name": key, "Values": values})

    def values(self, texts: Mapping[str, str]) -> dict[str, Any]:
        """The typed value of each option, from a trial's hyperparameters by key. Raises UserError for a missing one."""
        values = {}
        for name, key in self.keys.items():
            if key not in texts:
                raise UserError(f"The trial has no value of {name} (--{key}).")
            values[name] = self.space[name].read(_unquoted(texts[key]))
        return values


def keys_of(names: Sequence[str]) -> dict[str, str]:
    """A key for each name, safe as an argument and as an environment variable.

    >>> keys_of(["optim.lr", "optim_lr", "model", "+callbacks.x.y", "sagemaker_a"])
    {'optim.lr': 'optim_lr', 'optim_lr': 'optim_lr_2', 'model': 'model', '+callbacks.x.y': 'callbacks_x_y', \
'sagemaker_a': 'option_sagemaker_a'}
    """
    keys: dict[str, str] = {}
    for name in names:
        key = re.sub(r"[^A-Za-z0-9]+", "_", name.lstrip("+~")) or "option"
        if RESERVED.match(key) or len(key) == 1:
            key = f"option_{key}"
        taken, number, start = {other.upper() for other in keys.values()}, 2, key
        while key.upper() in taken:  # environment variables are in capitals
            key, number = f"{start}_{number}", number + 1
        keys[name] = key
    return keys


def value_of(dimension: Dimension, value: Any) -> str:
    """A value of a categorical range: its override as JSON, which the toolkit decodes. Raises UserError."""
    text = json.dumps(dimension.text(value))
    if len(text) > MAX_CHARACTERS:
        raise UserError(f"{dimension.name}={text[:40]}…: AWS takes values of up to {MAX_CHARACTERS} characters.")
    return text


def _is_range(numbers: Numbers) -> bool:
    """Whether AWS has a range for it: the only steps are those of 1 between whole numbers."""
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
    if dimension.count > MAX_VALUES:
        raise UserError(
            f"{dimension.name} has {dimension.count} values; a tuning job takes {MAX_VALUES} of a choice"
            f"{' or a range with steps' if not isinstance(dimension, Choice) else ''}. Give fewer, or an interval."
        )
    return dimension.grid()


def _unquoted(text: str) -> str:
    """The text in a JSON string, or `text` as it is."""
    try:
        return str(json.loads(text)) if text.startswith('"') else text
    except ValueError:
        return text
