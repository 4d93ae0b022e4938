"""From overrides to one checked configuration: Hydra's composition, checks of values, errors in one line.

May be imported by everything above; imports `aws`, `images`, `system` and what needs no torch of `models`: a
misspelt option is reported at once. Hydra is imported when a configuration is composed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from imgcls.config.composition import check, compose, plain
    from imgcls.config.groups import config_dir

__all__ = ["check", "compose", "config_dir", "plain"]


def __getattr__(name: str) -> Any:
    """Import a name when it is first used: `imgcls.data` shares the choices, and needs no Hydra."""
    if name not in __all__:
        raise AttributeError(f"module 'imgcls.config' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"imgcls.config.{'groups' if name == 'config_dir' else 'composition'}"), name)
