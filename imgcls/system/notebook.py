"""Whether this is a notebook, and what is shown there in place of printed lines."""

from __future__ import annotations

import sys
from typing import Any


def in_notebook() -> bool:
    """Whether this program is the kernel of a notebook, whose cells show HTML."""
    ipython = sys.modules.get("IPython")  # which a kernel has imported
    shell = ipython.get_ipython() if ipython is not None else None
    return shell is not None and "IPKernelApp" in shell.config


class LiveHtml:
    """A piece of HTML below the cell that runs, replaced by each `show`."""

    def __init__(self) -> None:
        self._handle: Any = None

    def show(self, content: str) -> None:
        """Display `content` in the place of what was shown before."""
        from IPython.display import HTML, display

        if self._handle is None:
            self._handle = display(HTML(content), display_id=True)
        else:
            self._handle.update(HTML(content))
