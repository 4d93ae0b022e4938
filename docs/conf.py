"""Sphinx's configuration: `sphinx-build -W docs build/docs`."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent / "_extensions"), str(Path(__file__).parent.parent)]

from imgcls import __version__  # noqa: E402 - the version of this checkout, installed or not

project = "imgcls"
version = release = __version__
html_title = f"imgcls {__version__}"
html_theme = "furo"

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "configuration_reference"]
exclude_patterns = ["_extensions"]
myst_heading_anchors = 3
myst_enable_extensions = ["colon_fence"]

default_role = "code"  # text in single backticks in docstrings
autodoc_member_order = "bysource"
autodoc_inherit_docstrings = False  # leave out Lightning's docstrings of its hooks
autodoc_typehints_format = "short"
autodoc_default_options = {"members": True, "show-inheritance": True}
napoleon_google_docstring = True
napoleon_numpy_docstring = False
python_maximum_signature_line_length = 88
