"""Run by Python when it starts in a rehearsed container, as `sitecustomize`: hides what AWS's image does not have.

`hidden.json` beside it lists modules and packages of this machine that are not found then. Needs nothing but Python.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Sequence
from importlib.machinery import ModuleSpec, PathFinder
from importlib.metadata import Distribution, DistributionFinder
from pathlib import Path
from types import ModuleType

LIST = "hidden.json"


class Image(PathFinder):
    """Finds what the image has."""

    modules: frozenset[str]
    packages: frozenset[str]

    @classmethod
    def find_spec(
        cls, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """As of PathFinder; None for a hidden module, but not for one of the same name in the job's code."""
        spec = super().find_spec(fullname, path, target)
        if spec is None or path is not None or fullname not in cls.modules:
            return spec
        places = [str(spec.origin), *(spec.submodule_search_locations or ())]
        return None if any("site-packages" in place for place in places) else spec

    @classmethod
    def find_distributions(cls, *context: DistributionFinder.Context) -> Iterator[Distribution]:  # type: ignore[override]
        """As of PathFinder, without the hidden packages."""
        for package in super().find_distributions(*context):
            if re.sub(r"[-_.]+", "-", str(package.name)).lower() not in cls.packages:
                yield package


if __name__ == "sitecustomize":
    hidden = json.loads(Path(__file__).with_name(LIST).read_text(encoding="utf-8"))
    Image.modules, Image.packages = (frozenset(hidden[name]) for name in ("modules", "packages"))
    sys.meta_path[:] = [Image if finder is PathFinder else finder for finder in sys.meta_path]
