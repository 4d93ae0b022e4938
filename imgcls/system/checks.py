"""Checks of option values, shared by Hydra's options and those of the commands."""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from imgcls.errors import UserError, nearest

UNITS = {"": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
Check = Callable[[Any], str | None]
"""Takes a value and returns None, or what is wrong with it."""


def check_value(name: str, value: Any, check: Check) -> None:
    """Raise UserError, with the option and its value, where `check` complains."""
    if complaint := check(value):
        raise UserError(f"{name}={_text(value)}: {complaint}")


def is_whole(value: Any) -> bool:
    """Whether `value` is an integer, and no bool."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    """Whether `value` is an integer or a float, and no bool."""
    return isinstance(value, float) or is_whole(value)


def whole(low: int, high: int | None = None, *, none: bool = False) -> Check:
    """A whole number from `low` to `high`."""

    def check(value: Any) -> str | None:
        if none and value is None:
            return None
        right = is_whole(value) and value >= low and (high is None or value <= high)
        span = f"of at least {low}" if high is None else f"from {low} to {high}"
        return None if right else f"must be a whole number {span}{', or null' if none else ''}."

    return check


def number(
    low: float = -math.inf,
    high: float = math.inf,
    *,
    open_low: bool = False,
    none: bool = False,
    words: Sequence[str] = (),
) -> Check:
    """A number from `low` (or above it) to `high`, or one of `words`."""

    def check(value: Any) -> str | None:
        if (none and value is None) or (isinstance(value, str) and value in words):
            return None
        if is_number(value) and (value > low if open_low else value >= low) and value <= high and math.isfinite(value):
            return None
        left = "" if low == -math.inf else f" above {low:g}" if open_low else f" of at least {low:g}"
        right = "" if high == math.inf else f"{' and' if left else ''} of at most {high:g}"
        span = f"{left}{right}" if open_low or not (left and right) else f" from {low:g} to {high:g}"
        also = "".join(f", or {word}" for word in [*words, *(["null"] if none else [])])
        return f"must be a number{span}{also}."

    return check


def parse_bytes(text: str) -> float:
    """Bytes, from a text such as 50GB. Raises ValueError.

    >>> parse_bytes("1.5GB"), parse_bytes("200")
    (1500000000.0, 200.0)
    """
    match = re.fullmatch(r"([\d.]+) ?([kMGT]?B?)", text)
    if match is None or (match[2] not in UNITS and match[2] != "B"):
        raise ValueError(text)
    return float(match[1]) * UNITS.get(match[2], 1)


def bytes_or_auto(value: Any) -> str | None:
    """An amount of bytes, or `auto`."""
    with contextlib.suppress(ValueError):
        if value == "auto" or parse_bytes(str(value)) > 0:
            return None
    return "must be auto, or bytes, such as 20GB."


def share(value: Any) -> str | None:
    """A number between 0 and 1, without these."""
    return None if is_number(value) and 0 < value < 1 else "must be a number between 0 and 1, as 0.95."


def share_or(*words: str | bool) -> Check:
    """A share, or one of `words`."""
    texts = ["true" if word is True else "false" if word is False else str(word) for word in words]

    def check(value: Any) -> str | None:
        right = share(value) is None or any(type(value) is type(word) and value == word for word in words)
        return None if right else f"must be a number between 0 and 1, as 0.95, or {' or '.join(texts)}."

    return check


def licence_name(value: Any) -> str | None:
    """The name of a licence as the Hugging Face hub writes it, or null."""
    right = value is None or (isinstance(value, str) and re.fullmatch(r"[a-z0-9][a-z0-9.+-]*", value))
    return None if right else "must be a licence as the hub names it, as apache-2.0, cc-by-4.0 or other."


def choice(*names: str | int | bool | None) -> Check:
    """One of `names`."""

    def check(value: Any) -> str | None:
        if any(value == name and type(value) is type(name) for name in names):
            return None
        return f"is not known. {nearest(str(value), list(map(_text, names)))}"

    return check


def either(*checks: Check) -> Check:
    """Passes where one of `checks` does; else the complaint is that of the first."""

    def check(value: Any) -> str | None:
        complaints = [complaint for alternative in checks if (complaint := alternative(value))]
        return complaints[0] if len(complaints) == len(checks) else None

    return check


def flag(value: Any) -> str | None:
    """true or false."""
    return None if isinstance(value, bool) else "must be true or false."


def mapping(value: Any) -> str | None:
    """Names and values, or null."""
    right = value is None or isinstance(value, Mapping)
    return None if right else "must be names and values, such as {width: 64}, or null."


def list_of(what: str, is_item: Callable[[Any], bool]) -> Check:
    """A list of `what`, of which each item passes `is_item`."""
    return lambda value: None if isinstance(value, list) and all(map(is_item, value)) else f"must be a list of {what}."


numbers = list_of("numbers", is_number)


def one_name(value: Any) -> str | None:
    """A name, or null."""
    return None if value is None or (isinstance(value, str) and value != "") else "must be a name, or null."


names = list_of("names, such as [first,second]", lambda item: isinstance(item, str) and item != "")
mappings = list_of("options with their values: [{optim.lr: 0.1}]", lambda item: isinstance(item, Mapping))


def existing_file(value: Any) -> str | None:
    """An existing file or folder, or null."""
    if value is None or (isinstance(value, str) and "://" in value):
        return None
    return None if Path(str(value)).expanduser().exists() else "no such file or folder."


def existing_folder(value: Any) -> str | None:
    """An existing folder, an s3:// address, or null."""
    if value is None or (isinstance(value, str) and value.startswith("s3://")):
        return None
    return local_folder(value)


def local_folder(value: Any) -> str | None:
    """An existing folder on this machine."""
    path = Path(str(value)).expanduser()
    if path.is_dir():
        return None
    return "is a file, not a folder." if path.exists() else "no such folder."


def _text(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
