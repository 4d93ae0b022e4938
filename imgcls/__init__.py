"""imgcls: fine-tune image classifiers, and know what every run did.

>>> import imgcls
>>> run = imgcls.fit("data=digits model=resnet18")  # doctest: +SKIP
>>> run.metrics["test/accuracy"]  # doctest: +SKIP
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["Client", "Run", "UserError", "compose", "evaluate", "export", "fit", "load", "monitor", "search"]

if TYPE_CHECKING:
    from imgcls.config.composition import compose
    from imgcls.errors import UserError
    from imgcls.evaluate import evaluate
    from imgcls.export import export
    from imgcls.launch import launch as fit
    from imgcls.monitor import monitor
    from imgcls.runs.run import Run, load
    from imgcls.serve.client import Client
    from imgcls.sweeps.python import search

_WHERE = {
    "compose": ("imgcls.config", "compose"),
    "fit": ("imgcls.launch", "launch"),
    "Client": ("imgcls.serve.client", "Client"),
    "load": ("imgcls.runs", "load"),
    "search": ("imgcls.sweeps.python", "search"),
    "Run": ("imgcls.runs", "Run"),
    "UserError": ("imgcls.errors", "UserError"),
}


def __dir__() -> list[str]:
    return [*__all__, "__version__"]  # what a notebook offers after Tab


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that `import imgcls` stays instant."""
    if name in ("evaluate", "export", "monitor"):  # these modules are callable
        return import_module(f"imgcls.{name}")
    if name not in _WHERE:
        raise AttributeError(f"module 'imgcls' has no attribute {name!r}")
    module, attribute = _WHERE[name]
    return getattr(import_module(module), attribute)
