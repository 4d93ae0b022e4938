"""What the benchmarks have in common: their options, and results as a line of JSON."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any


def command_line(about: str | None) -> argparse.ArgumentParser:
    """Options of a script with the docstring `about`: so far `--json FILE`."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="a file for the line of results")
    return parser


def report(result: Any, file: Path | None) -> None:
    """Print `result` as a line of JSON, and write it to `file`."""
    line = json.dumps(result, default=str)
    print(line)
    if file is not None:
        file.write_text(line + "\n")
