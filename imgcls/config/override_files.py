"""Words that stand in a file: `python -m imgcls.train sweeps/digits/best.yaml trainer.max_epochs=50`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from imgcls.errors import UserError

ENDINGS = (".yaml", ".yml")
BEFORE_A_NAME = ("-cn", "--config-name", "-cp", "--config-path", "-cd", "--config-dir", "-p", "--package")


def expand(words: Sequence[str]) -> list[str]:
    """`words` with each file among them replaced by the overrides that it holds; later words win over it.

    Such a file is a run's `overrides.yaml`, a search's `best.yaml`, or one's own list of overrides.
    """
    found: list[str] = []
    for place, word in enumerate(words):
        is_name = place > 0 and words[place - 1] in BEFORE_A_NAME
        if word.endswith(ENDINGS) and "=" not in word and not word.startswith("-") and not is_name:
            found += read_overrides(Path(word).expanduser())
        else:
            found.append(word)
    return found


def read_overrides(file: Path) -> list[str]:
    """The overrides in `file`: a list, or a mapping with a list called `overrides`. Raises UserError."""
    import yaml

    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{file}: no such file.") from None
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"{file} cannot be read: {' '.join(str(error).split())}") from error
    words = content.get("overrides") if isinstance(content, dict) else content
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise UserError(
            f"{file} holds no overrides. Give a run's overrides.yaml, a search's best.yaml, "
            "or a list such as [optim.lr=0.1]."
        )
    return words
