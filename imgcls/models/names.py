"""Model names, read from the sources of timm and imgcls: a misspelt one is refused before torch is imported."""

from __future__ import annotations

import importlib.util
import re
from functools import cache
from pathlib import Path

_REGISTERED = re.compile(r"^@register_model\b[^\n]*\n(?:@[^\n]*\n)*def (\w+)\(", re.MULTILINE)


@cache
def all_model_names() -> tuple[str, ...]:
    """Names of all architectures of the installed timm and of imgcls, sorted; empty if timm is not installed."""
    spec = importlib.util.find_spec("timm")
    if spec is None or spec.origin is None:
        return ()
    sources = [*(Path(spec.origin).parent / "models").glob("*.py"), Path(__file__).with_name("cifarnet.py")]
    return tuple(sorted({name for file in sources for name in _REGISTERED.findall(file.read_text(encoding="utf-8"))}))


def is_model(name: str) -> bool:
    """Whether timm or imgcls has `name`, with or without the tag of its weights (`resnet50.a1_in1k`)."""
    return name.partition(".")[0] in all_model_names()
