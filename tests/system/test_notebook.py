"""Notebooks: found out, and written to without red boxes."""

from __future__ import annotations

import logging
import sys
from types import SimpleNamespace

import pytest

from imgcls.system.logs import log_to_terminal
from imgcls.system.notebook import LiveHtml, in_notebook


@pytest.mark.parametrize(
    ("shell", "expected"),
    [
        (None, False),  # IPython is imported, by somebody else
        (SimpleNamespace(config={}), False),  # IPython in a terminal
        (SimpleNamespace(config={"IPKernelApp": {}}), True),
    ],
)
def test_only_a_kernel_is_a_notebook(
    shell: object, expected: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))
    assert in_notebook() is expected
    with log_to_terminal():
        logging.getLogger("imgcls.test").info("for information")
    captured = capsys.readouterr()
    assert (captured.out, captured.err)[not expected] == "for information\n"
    assert (captured.out, captured.err)[expected] == ""


def test_without_ipython_it_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "IPython", raising=False)
    assert not in_notebook()


def test_what_is_shown_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = []
    handle = SimpleNamespace(update=lambda content: shown.append(("update", content)))

    def display(content: object, display_id: bool) -> object:
        shown.append(("display", content))
        return handle

    monkeypatch.setitem(sys.modules, "IPython.display", SimpleNamespace(HTML=str, display=display))
    live = LiveHtml()
    live.show("<p>1")
    live.show("<p>2")
    assert shown == [("display", "<p>1"), ("update", "<p>2")]
