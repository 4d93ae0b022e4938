"""`python -m imgcls.soup run=DIR run=DIR …`: average runs that began from the same weights into one model.

usage: python -m imgcls.soup run=DIR run=DIR … [output=DIR] [onnx=auto|true|false] [trust=true] [data.root=DIR …]

The runs are sorted by their validation metric; each joins the average of the weights unless that becomes worse on the
validation images. The result is a run folder, `output` (default: `soup` beside the first run), never worse there than
the best run, and as fast as one of them. A folder of runs, such as that of a sweep or a search, stands for all of its
finished runs. `trust=true` runs classes that are not imgcls's own, see docs/run-folder.md.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from imgcls.cli import Option, announce, boolean, make_callable, read_options, run_command
from imgcls.errors import UserError
from imgcls.system.checks import choice, flag
from imgcls.system.extras import check_onnx
from imgcls.system.logs import log_to_terminal

if TYPE_CHECKING:
    from imgcls.runs.run import Run

OPTIONS = {
    "run": Option(),
    "output": Option(),
    "onnx": Option("auto", choice("auto", True, False), boolean),
    "trust": Option(False, flag, boolean),
}


def soup(
    runs: Sequence[Run | str | Path],
    output: str | Path | None = None,
    *,
    onnx: bool = True,
    overrides: Sequence[str] = (),
    trust: bool = False,
) -> Run:
    """The run whose weights are the greedy average of `runs` (Wortsman et al. 2022).

    Args:
        runs: finished runs that began from the same weights, or their folders, or folders of such runs.
        output: the folder of the new run; None: `soup` beside the first run.
        onnx: also write `model.onnx`, where the extra `onnx` is installed.
        overrides: `data.…=…`, where the data set has moved.
        trust: instantiate classes that are not imgcls's own, and fetch from the addresses in `config.yaml`.

    Raises:
        UserError: the runs do not fit together, or `output` holds a run.
    """
    from imgcls.runs.run import run_in

    given = [run_in(run) for entry in runs for run in _runs(entry)]
    folder = Path(output).expanduser() if output is not None else given[0].folder.parent / "soup"
    given = [run for run in given if run.folder.resolve() != folder.resolve()]

    from imgcls.training.run_soup import make_soup

    return make_soup(given, folder, overrides, onnx=onnx, trust=trust)


def _runs(entry: Run | str | Path) -> Sequence[Run | str | Path]:
    """`entry`, or the finished runs in it if it is a folder of runs."""
    folder = Path(entry).expanduser() if isinstance(entry, str | Path) else None
    if folder is None or (folder / "config.yaml").is_file() or not folder.is_dir():
        return [entry]
    inside = [file.parent for file in sorted(folder.glob("*/metrics.json"))]
    return [run for run in inside if (run / "checkpoints" / "best.ckpt").is_file()] or [entry]


def _command(arguments: Sequence[str]) -> None:
    options, overrides, _ = read_options(arguments, OPTIONS, usage=__doc__ or "", overrides=("data.",))
    runs = list(dict.fromkeys(argument.removeprefix("run=") for argument in arguments if argument.startswith("run=")))
    if not runs:
        raise UserError("Give the run folders: run=DIR run=DIR …")
    if options["onnx"] is True:
        check_onnx("onnx=true")
    announce("loading PyTorch, Lightning and timm")
    import lightning  # noqa: F401 - sets up its loggers, which are silenced below

    from imgcls.runs.reading import read_json

    with log_to_terminal():
        made = soup(
            runs, options["output"], onnx=options["onnx"] is not False, overrides=overrides, trust=options["trust"]
        )

    for member in read_json(made.folder / "soup.json")["members"]:
        print(f"{member['score']:<10.6g} {'averaged' if member['averaged'] else 'left out':9} {member['run']}")
    for name in ("val/accuracy", "val/map", "test/accuracy", "test/map"):
        if name in made.metrics:
            print(f"{name:15} {made.metrics[name]:.6g}")
    print(made.folder)


def main() -> None:
    """Run the command line."""
    run_command(lambda: _command(sys.argv[1:]))


make_callable(__name__, soup)

if __name__ == "__main__":
    main()
