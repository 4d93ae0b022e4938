"""`python -m imgcls.extend run=DIR class=NAME IMAGES…`: add a class to a model of head=prototype or head=knn.

usage: python -m imgcls.extend run=DIR class=NAME [output=DIR] IMAGES…

run= is a run folder, or the folder of a portable model; IMAGES are files or folders (all images in them) of the new
class. Nothing is trained: the features of the images are added to those that the head keeps, and the scores of the
other classes stay the same to the bit. The result is a new portable model in `output`, by default the folder of `run`
with +NAME at its end; output=DIR replaces DIR. An image that cannot be read is named on stderr and left out.
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from imgcls.aws.s3 import is_remote
from imgcls.cli import Option, read_options, run_command
from imgcls.embed import compute_features
from imgcls.errors import UserError
from imgcls.models.hub import is_on_hub
from imgcls.predict import picture_files

OPTIONS = {"run": Option(), "class": Option(), "output": Option()}


def extend(run: str, name: str, files: Sequence[str], output: Path) -> int:
    """Write the model of `run` with one more class, of the images in `files`, to `output`; return their number.

    Args:
        run: a run folder, or the folder of a portable model.
        name: of the new class.
        files: paths of images; those that cannot be read are named on stderr and left out.
        output: folder of the new portable model, replaced whole.

    Raises:
        UserError: the model's head is of another kind, it has this class already, or no image can be read.
    """
    import numpy as np

    from imgcls import portable
    from imgcls.portable import extension
    from imgcls.runs.run import find_model

    source = find_model(run)
    model = portable.load(source, "torch", device=None)
    extension.check_class(model, name)
    unreadable: list[str] = []
    with closing(compute_features(model, files, unreadable)) as parts:
        batches = [features for _, features in parts]
    readable = [file for file in files if file not in set(unreadable)]
    if not readable:
        raise UserError("None of the images can be read: nothing was written.")
    began = time.monotonic()
    pixels = [model.preprocessing.pixels(model.preprocessing.open(file)) for file in readable[: extension.CHECKED]]
    extension.extend(model, source, output, name, np.concatenate(batches), np.stack(pixels))
    print(f"{output}  {len(model.class_names) + 1} classes, in {time.monotonic() - began:.1f} s after the features")
    return len(readable)


def default_output(run: str, name: str) -> Path:
    """The folder beside that of `run` with the name of the class. Raises UserError if it exists."""
    if is_remote(run) or is_on_hub(run):
        raise UserError("Say where to write the model: output=DIR")
    folder = Path(run).expanduser()
    ending = re.sub(r"[^\w.-]+", "_", name)
    output = folder.with_name(f"{folder.name}+{ending}")
    if output.exists():
        raise UserError(f"{output} exists. Give another folder, or the same to replace it: output=DIR")
    return output


def _command(arguments: Sequence[str]) -> None:
    options, _, paths = read_options(arguments, OPTIONS, usage=__doc__ or "", others=None)
    run, name = options["run"], options["class"]
    if run is None or name is None or not paths:
        raise UserError("Give a model, a class and its images: python -m imgcls.extend run=DIR class=NAME IMAGES…")
    output = Path(options["output"]).expanduser() if options["output"] else default_output(run, name)
    extend(run, name, [str(file) for file in picture_files(paths)], output)


def main() -> None:
    """Run the command line."""
    run_command(lambda: _command(sys.argv[1:]))


if __name__ == "__main__":
    main()
