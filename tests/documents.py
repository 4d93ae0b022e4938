"""README, CONTRIBUTING and the pages, taken apart: their commands, files, programs and options."""

from __future__ import annotations

import re
import runpy
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep

import imgcls
from imgcls.config.overrides import expand

ROOT = Path(__file__).parent.parent
PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text()
    for path in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
}


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    page: str
    language: str
    text: str

    @property
    def file(self) -> str | None:
        """The file that the block shows: `# name.py` in its first line, `# conf/…` in one of its first two."""
        match = re.search(r"\A(?:# @package .*\n)?# (\S+\.(?:py|yaml))\n", self.text)
        return match[1] if match else None


@dataclass(frozen=True)
class Command:
    """A line of a bash block."""

    page: str
    line: str
    block: int
    """The place of its block among all."""

    @property
    def module(self) -> str | None:
        """`train` in `python -m imgcls.train …`."""
        match = re.match(r"(?:[A-Z_]+=\S+ )*python -m imgcls\.(\w+)\b", self.line)
        return match[1] if match else None

    @property
    def environment(self) -> dict[str, str]:
        """What is set before the command."""
        words = shlex.split(self.line)
        return dict(word.split("=", 1) for word in words[: words.index("python")])

    @property
    def words(self) -> list[str]:
        """What follows the module, without comments and redirections."""
        words = shlex.split(self.line, comments=True)
        words = words[words.index("-m") + 2 :]
        end = next((place for place, word in enumerate(words) if word in ("|", ">", "&", "&&", ";")), len(words))
        return words[:end]


def blocks(language: str | None = None) -> list[Block]:
    """The fenced blocks of all pages, in order."""
    fences = re.compile(r"^```([^\n]*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
    found = [Block(page, kind, text) for page, content in PAGES.items() for kind, text in fences.findall(content)]
    return [block for block in found if language is None or block.language == language]


def commands() -> list[Command]:
    """The lines of all bash blocks; a line that ends in a backslash goes on."""
    joined = [(block.page, block.text.replace("\\\n", " ")) for block in blocks("bash")]
    lines = [
        Command(page, " ".join(line.split()), place)
        for place, (page, text) in enumerate(joined)
        for line in text.splitlines()
    ]
    return [command for command in lines if command.line and not command.line.startswith("#")]


def options() -> list[tuple[str, str]]:
    """(page, words) of what stands in backticks and has the form of options."""
    written = re.compile(r"`((?:[a-z_]+(?:[./][a-zA-Z_]+)*=[^`\s]+ ?)+)`")
    return [(page, words) for page, content in PAGES.items() for words in written.findall(content)]


def one_trial(words: list[str]) -> list[str]:
    """The words of one run of a sweep: of several values the first."""
    parser = OverridesParser.create()
    chosen = []
    for word in expand(words):
        if word.startswith("-"):
            continue
        override = parser.parse_override(word)
        if override.is_sweep_override():
            value = override.value()
            first = value.start if isinstance(value, IntervalSweep) else next(override.sweep_string_iterator())
            word = f"{override.get_key_element()}={first}"
        chosen.append(word)
    return chosen


def run_here(command: Command, monkeypatch: pytest.MonkeyPatch) -> str | int | None:
    """Run the command of a page in this process; return its exit code."""
    module = f"imgcls.{command.module}"
    monkeypatch.setattr(sys, "argv", [module, *command.words])
    for name, value in command.environment.items():
        monkeypatch.setenv(name, value)
    if loaded := sys.modules.get(module):
        monkeypatch.delitem(sys.modules, module)  # runpy warns of a module that is there already
        monkeypatch.setattr(imgcls, str(command.module), loaded)  # as afterwards, whatever is imported meanwhile
    with pytest.raises(SystemExit) as ended:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    return ended.value.code
