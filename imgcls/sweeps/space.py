"""A search space, read from Hydra's own sweep syntax: one description for a grid, for Optuna and for tuning jobs.

A searcher reads `space.dimensions` (each a Choice or Numbers), suggests a value for each by its name, and gets the
overrides of a trial from `space.overrides(values)`:

>>> space, fixed = parse_space(["data=digits", "optim.lr=tag(log,interval(1e-3,1e-1))", "data.batch_size=32,64"])
>>> rate, batch = space.dimensions
>>> (rate.low, rate.high, rate.log, rate.whole, rate.step), batch.values
((0.001, 0.1, True, False, None), (32, 64))
>>> [*fixed, *space.overrides({"optim.lr": 0.02, "data.batch_size": 64})]
['data=digits', 'optim.lr=0.02', 'data.batch_size=64']
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override, QuotedString, RangeSweep, Transformer, ValueType
from hydra.errors import HydraException

from imgcls.errors import UserError, nearest

Value = str | int | float | bool | None


@dataclass(frozen=True)
class Choice:
    """One of several unordered values: `choice(32,64)` or `32,64`.

    Args:
        name: the option, or the group (`model`).
        values: to choose from; a list or mapping is held as its text.
        texts: each value as it is written in an override.
    """

    name: str
    values: tuple[Value, ...]
    texts: tuple[str, ...]

    def checked(self, value: Any) -> Value:
        """`value` as it is in `values`. Raises UserError if it is not one of them."""
        plain = value_text(value) if isinstance(value, list | tuple | Mapping) else value
        for known in self.values:
            if known == plain and isinstance(known, bool) == isinstance(plain, bool):
                return known
        raise UserError(f"{self.name}={value}: not in its search space, which is {', '.join(self.texts)}.")

    def text(self, value: Any) -> str:
        """`value` as it is written in an override. Raises UserError if it is not one of the values."""
        return self.texts[self.values.index(self.checked(value))]

    def typed(self, value: Any) -> Any:
        """`value` with its own type, a list as a list."""
        known = self.checked(value)
        text = self.texts[self.values.index(known)]
        return _parsed(text) if isinstance(known, str) and text[:1] in "[{" else known

    def read(self, text: str) -> Any:
        """The typed value of a text that may be quoted, as a tuning job returns it: `"32"`."""
        bare = text.strip().strip('"')
        for known, written in zip(self.values, self.texts, strict=True):
            if bare in (written, written.strip("'"), str(known)):
                return self.typed(known)
        raise UserError(f"{self.name}={text}: not in its search space, which is {', '.join(self.texts)}.")

    @property
    def count(self) -> int:
        """How many values there are."""
        return len(self.values)

    def grid(self) -> Sequence[Value]:
        """Every value."""
        return self.values

    def describe(self) -> str:
        """The dimension in Hydra's syntax."""
        values = ",".join(self.texts)  # null is valid in `a,null`, not in choice(…)
        return values if len(self.texts) > 1 else f"choice({values})"


@dataclass(frozen=True)
class Numbers:
    """Numbers from `low` to `high`, both included: `interval(…)` without a `step`, `range(…)` with one.

    Args:
        name: the option.
        low, high: the bounds, both included.
        step: the distance of neighbours; None: any number within the bounds.
        log: whether equal ratios count as equal distances.
        whole: whether the numbers are integers.
    """

    name: str
    low: float
    high: float
    step: float | None = None
    log: bool = False
    whole: bool = False

    def __post_init__(self) -> None:
        if not (math.isfinite(self.low) and math.isfinite(self.high)) or self.low > self.high:
            raise UserError(f"{self.name}: a space from {self.low:g} to {self.high:g} is empty.")
        if self.log and self.low <= 0:
            raise UserError(f"{self.name}: tag(log, …) needs a lower bound above 0, not {self.low:g}.")
        if self.log and self.step is not None and not (self.whole and self.step == 1):
            raise UserError(f"{self.name}: tag(log, range(…)) is only supported for whole numbers in steps of 1.")

    def checked(self, value: Any) -> Value:
        """`value` as a number of the space's type. Raises UserError if it is out of bounds."""
        number = not isinstance(value, bool) and isinstance(value, int | float)
        if not number or not self.low <= value <= self.high or (self.whole and value != int(value)):
            kind = "whole numbers " if self.whole else ""
            raise UserError(f"{self.name}={value}: not in its search space, {kind}{self.low:g} to {self.high:g}.")
        return int(value) if self.whole else float(value)

    def text(self, value: Any) -> str:
        """`value` as it is written in an override. Raises UserError if it is out of bounds."""
        return repr(self.checked(value))

    typed = checked

    def read(self, text: str) -> Any:
        """The number of a text that may be quoted, as a tuning job returns it: an end may be off by a rounding."""
        try:
            number = float(text.strip().strip('"'))
        except ValueError:
            raise UserError(f"{self.name}={text}: is not a number.") from None
        for end in (self.low, self.high):
            if math.isclose(number, end, rel_tol=1e-9):
                number = end
        return self.checked(number)

    @property
    def count(self) -> int:
        """How many numbers there are. Raises UserError for an interval, which has infinitely many."""
        if self.step is None:
            raise UserError(f"{self.name}: a grid needs single values. Use choice(…) or range(…), not interval(…).")
        return math.floor((self.high - self.low) / self.step + 1e-9) + 1

    def grid(self) -> Sequence[Value]:
        """Every number. Raises UserError for an interval."""
        values = [self.low + position * (self.step or 0) for position in range(self.count)]
        return [int(value) for value in values] if self.whole else [round(value, 12) for value in values]

    def describe(self) -> str:
        """The dimension in Hydra's syntax."""
        if self.step is None:
            text = f"interval({self.low!r},{self.high!r})"
        else:
            end = self.high + (1 if self.whole else self.step / 2)
            low, end, step = (int(value) if self.whole else round(value, 12) for value in (self.low, end, self.step))
            text = f"range({low},{end})" if step == 1 else f"range({low},{end},{step})"
        return f"tag(log,{text})" if self.log else text


Dimension = Choice | Numbers


@dataclass(frozen=True)
class Space:
    """The dimensions of a search, by the name of their option."""

    dimensions: tuple[Dimension, ...]

    @property
    def names(self) -> list[str]:
        """The names of the options that are searched over."""
        return [dimension.name for dimension in self.dimensions]

    @property
    def combinations(self) -> int:
        """How many combinations there are. Raises UserError where a dimension is an interval."""
        return math.prod(dimension.count for dimension in self)

    def __iter__(self) -> Iterator[Dimension]:
        return iter(self.dimensions)

    def __getitem__(self, name: str) -> Dimension:
        for dimension in self.dimensions:
            if dimension.name == name:
                return dimension
        raise KeyError(name)

    def __contains__(self, name: object) -> bool:
        return name in self.names

    def overrides(self, values: Mapping[str, Any]) -> list[str]:
        """`values` as overrides. Raises UserError for a value that is not in the space."""
        return [f"{dimension.name}={dimension.text(values[dimension.name])}" for dimension in self]

    def typed(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """`values`, each of its own type."""
        return {dimension.name: dimension.typed(values[dimension.name]) for dimension in self}

    def checked(self, values: Mapping[str, Any], where: str) -> dict[str, Value]:
        """Typed `values` of some or all dimensions. Raises UserError, which says `where` they are from."""
        for name in values:
            if name not in self:
                raise UserError(f"{where}: {name} is not searched over. {nearest(name, self.names)}")
        return {name: self[name].checked(value) for name, value in values.items()}

    def grid(self) -> Iterator[dict[str, Value]]:
        """Every combination; the last dimension changes fastest, as in Hydra's basic sweep."""
        for values in itertools.product(*(dimension.grid() for dimension in self)):
            yield dict(zip(self.names, values, strict=True))

    def describe(self) -> dict[str, str]:
        """Each dimension in Hydra's syntax, to compare, show and pass on."""
        return {dimension.name: dimension.describe() for dimension in self}


def parse_space(overrides: Iterable[str], config_loader: Any = None) -> tuple[Space, list[str]]:
    """Split overrides into the space of those that sweep, and the others.

    A later override of the same option replaces an earlier one.

    >>> space, fixed = parse_space(["data=digits", "optim.lr=tag(log,interval(1e-3,1e-1))", "seed=range(2,5)"])
    >>> space.names, fixed, space["seed"].grid()
    (['optim.lr', 'seed'], ['data=digits'], [2, 3, 4])

    Args:
        overrides: in Hydra's syntax.
        config_loader: Hydra's, for `model=glob(*)`.
    """
    parser = OverridesParser.create(config_loader=config_loader)
    dimensions: dict[str, Dimension] = {}
    fixed: dict[str, str] = {}
    for text in overrides:
        try:
            override = parser.parse_override(text)
            name = override.get_key_element()
            fixed.pop(name, None)
            dimensions.pop(name, None)
            if override.is_sweep_override():
                dimensions[name] = _dimension(name, override)
            else:
                fixed[name] = text
        except HydraException as error:
            reason = " ".join(str(error).split())
            raise UserError(
                f"{text}: this cannot be read ({reason}). Write a space as in 'optim.lr=tag(log,interval(1e-3,1e-1))', "
                "'data.batch_size=choice(32,64)' or 'trainer.max_epochs=range(2,5)'."
            ) from error
    return Space(tuple(dimensions.values())), list(fixed.values())


def space_overrides(space: Mapping[str, Any]) -> list[str]:
    """The overrides of a space that is given as a mapping (in a file, or from Python).

    >>> space_overrides({"optim.lr": "interval(1e-3,1e-1)", "model": ["resnet18", "resnet50"]})
    ['optim.lr=interval(1e-3,1e-1)', 'model=resnet18,resnet50']

    Raises UserError for an entry that is not a space.
    """
    overrides = []
    for name, described in space.items():
        if isinstance(described, str):
            overrides.append(f"{name}={described}")
        elif isinstance(described, Sequence) and described:
            texts = ",".join(value_text(value) for value in described)  # `a,null` is valid, choice(…) takes no null
            overrides.append(f"{name}={texts}" if len(described) > 1 else f"{name}=choice({texts})")
        else:
            raise UserError(f"search.space.{name}={described}: must be choice(…), range(…), interval(…), or a list.")
    swept, _ = parse_space(overrides)
    for name, override in zip(space, overrides, strict=True):
        if name not in swept:
            raise UserError(f"search.space: {override} is one value, not a space. Give it as a separate option.")
    return overrides


def value_text(value: Any) -> str:
    """`value` as it is written in an override."""
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{value_text(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return f"[{','.join(value_text(item) for item in value)}]"
    if isinstance(value, str):
        plain = value.replace("_", "").replace("-", "").replace(".", "").replace("/", "").isalnum()
        unmistakable = value[:1].isalpha() and value.lower() not in ("true", "false", "null", "nan", "inf")
        escaped = value.replace("\\", "\\\\").replace("'", "\\'")
        return value if plain and unmistakable else f"'{escaped}'"
    return json.dumps(value) if value is None or isinstance(value, bool) else repr(value)


def _dimension(name: str, override: Override) -> Dimension:
    swept: Any = override.value()
    log = "log" in getattr(swept, "tags", set())
    if isinstance(swept, IntervalSweep):
        assert swept.start is not None
        assert swept.end is not None
        whole = isinstance(swept.start, int) and isinstance(swept.end, int)
        # Hydra: low <= x < high
        return Numbers(name, swept.start, swept.end - 1 if whole else swept.end, 1 if whole else None, log, whole)
    if override.value_type == ValueType.RANGE_SWEEP and isinstance(swept, RangeSweep):
        numbers = sorted(swept.range())
        if not numbers:
            raise UserError(f"{name}: {override.input_line} is empty.")
        whole = all(isinstance(number, int) for number in numbers)
        return Numbers(name, numbers[0], numbers[-1], abs(swept.step), log, whole)
    texts = list(override.sweep_string_iterator())
    values: Iterator[Any] = override.sweep_iterator(Transformer.identity)
    unique = {text: _single(value, text) for text, value in zip(texts, values, strict=True)}
    return Choice(name, tuple(unique.values()), tuple(unique))


def _single(value: Any, text: str) -> Value:
    if isinstance(value, QuotedString):
        return str(value.text)
    return value if value is None or isinstance(value, str | int | float | bool) else text


def _parsed(text: str) -> Any:
    return OverridesParser.create().parse_override(f"value={text}").value()
