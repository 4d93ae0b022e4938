"""From a run folder to its report."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from imgcls.errors import UserError
from imgcls.report.blocks import Blocks, Figure, Text
from imgcls.report.headline import facts, headline
from imgcls.report.run_data import RunData
from imgcls.report.sections import SECTIONS, errors
from imgcls.report.sections.section import Section
from imgcls.system.files import atomic_write_bytes, atomic_write_text

log = logging.getLogger(__name__)

MAX_BYTES = 1_000_000  # of a report: with more, fewer misclassified images are drawn
FEWER_ERRORS = (100, 30, 10)


def write_report(folder: Path) -> Path:
    """Write `report.html` and `figures/*.png` of the run in `folder`; return the page's path.

    A section that fails becomes a warning and a sentence on the page. Above a megabyte, fewer misclassified images are
    drawn. Raises UserError where the folder cannot be written.
    """
    run = RunData(folder)
    sections = {section.title: _make_section(run, section) for section in SECTIONS}
    page = _write(run, sections)
    for most in FEWER_ERRORS:
        if page.stat().st_size <= MAX_BYTES:
            break
        run.most_errors = most
        sections[errors.SECTION.title] = _make_section(run, errors.SECTION)
        page = _write(run, sections)
    for block in chain.from_iterable(sections.values()):
        if isinstance(block, Figure) and block.name:
            atomic_write_bytes(folder / "figures" / f"{block.name}.png", block.png)
    return page


def _write(run: RunData, sections: Mapping[str, Blocks]) -> Path:
    sentence, numbers = headline(run)
    about, name = facts(run), run.folder.resolve().name
    present = {title: blocks for title, blocks in sections.items() if blocks}
    return write_page(run.folder / "report.html", name, present, sentence=sentence, numbers=numbers, facts=about)


def try_report(folder: Path) -> None:
    """Write the report at the end of a training, which must not fail because of it."""
    try:
        write_report(folder)
    except Exception as error:
        reason = f"{error} " if isinstance(error, UserError) else ""
        log.warning(
            "The report could not be written. %sTo try again: python -m imgcls.report run=%s",
            reason,
            folder,
            exc_info=not reason,
        )


def write_page(
    output: Path,
    title: str,
    sections: Mapping[str, Blocks],
    *,
    sentence: str,
    numbers: Sequence[tuple[str, ...]] = (),
    facts: Sequence[tuple[str, str]] = (),
) -> Path:
    """Write a page; return its path.

    Args:
        output: the file.
        title: of the page.
        sections: the blocks of each section by its title.
        sentence: what the page says in short.
        numbers: label, value and, where there is one, interval of the most important numbers.
        facts: label and value of what the page is about.
    """
    numbers = [(*number, "")[:3] for number in numbers]
    content = [
        {"id": name.lower().replace(" ", "-"), "title": name, "blocks": blocks} for name, blocks in sections.items()
    ]
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    template = environment.get_template("report.html.j2")
    atomic_write_text(
        output, template.render(title=title, sections=content, sentence=sentence, numbers=numbers, facts=facts)
    )
    return output


def _make_section(run: RunData, section: Section) -> Blocks:
    try:
        return section.make(run)
    except Exception as error:  # a finished training must not fail on its report
        log.warning(
            "Report: the section %r of %s failed. %s: %s", section.title, run.folder, type(error).__name__, error
        )
        return [Text(f"This section could not be created: {type(error).__name__}: {error}.")]
