"""Checks a request against AWS's own description of the service: allowed values, patterns, lengths and ranges.

botocore contains these descriptions and checks only types and required fields before it sends a request.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

SHOWN = 3  # values of an enumeration in a message


def violations(shape: Any, value: Any, place: str = "") -> Iterator[str]:
    """What AWS would refuse in `value`, in its words.

    Args:
        shape: botocore's description of the value, such as `operation.input_shape`.
        value: the parameters of the request.
        place: the field, for the message.
    """
    kind, limits = shape.type_name, shape.metadata
    if kind == "structure" and isinstance(value, Mapping):
        for name, member in value.items():
            if member is not None and name in shape.members:
                yield from violations(shape.members[name], member, f"{place}.{name}".lstrip("."))
    elif kind == "list" and isinstance(value, list | tuple):
        yield from _bounds(limits, len(value), place, value, "length")
        for number, member in enumerate(value, 1):
            yield from violations(shape.member, member, f"{place}.{number}.member")
    elif kind == "map" and isinstance(value, Mapping):
        yield from _bounds(limits, len(value), place, value, "length")
        for key, member in value.items():
            yield from violations(shape.key, key, f"{place}.key")
            yield from violations(shape.value, member, f"{place}.{key}")
    elif kind == "string" and isinstance(value, str):
        yield from _bounds(limits, len(value), place, value, "length")
        options = getattr(shape, "enum", ())
        if options and value not in options:
            shown = ", ".join(options[:SHOWN]) + (", …" if len(options) > SHOWN else "")
            yield _refusal(value, place, f"Member must satisfy enum value set: [{shown}]")
        elif "pattern" in limits and not _matches(limits["pattern"], value):
            yield _refusal(value, place, f"Member must satisfy regular expression pattern: {limits['pattern']}")
    elif kind in ("integer", "long", "float", "double") and isinstance(value, int | float):
        yield from _bounds(limits, value, place, value, "value")


def _bounds(limits: Mapping[str, Any], size: float, place: str, value: Any, what: str) -> Iterator[str]:
    if "min" in limits and size < limits["min"]:
        yield _refusal(value, place, f"Member must have {what} greater than or equal to {limits['min']}")
    if "max" in limits and size > limits["max"]:
        yield _refusal(value, place, f"Member must have {what} less than or equal to {limits['max']}")


def _matches(pattern: str, value: str) -> bool:
    """Whether the pattern, written for Java, accepts the value; true for one that Python cannot read."""
    # Unicode's classes for letters, separators and numbers, which stand in [brackets]
    pattern = pattern.replace(r"\p{L}", r"\w").replace(r"\p{Z}", r"\s").replace(r"\p{N}", r"\d")
    try:
        return re.fullmatch(pattern, value) is not None
    except re.error:
        return True


def _refusal(value: Any, place: str, reason: str) -> str:
    return f"Value '{str(value)[:100]}' at '{place}' failed to satisfy constraint: {reason}"
