"""`python -m imgcls.predict run=DIR PICTURES…`: what a finished run sees in pictures.

usage: python -m imgcls.predict run=DIR [top_k=5] [format=table|jsonl] PICTURES…

PICTURES are files or folders (all pictures in them). A picture that cannot be read is named on stderr, the others are
answered, and the exit code is 1.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from imgcls.cli import guarded, parse_arguments
from imgcls.errors import UserError, nearest

BATCH = 32


def predict(arguments: Sequence[str]) -> None:
    """Print the likeliest classes of each picture."""
    options, _, words = parse_arguments(
        arguments, {"run": "", "top_k": "5", "format": "table"}, usage=__doc__ or "", overrides=()
    )
    if not options["run"]:
        raise UserError("Which run? Give its folder: python -m imgcls.predict run=DIR PICTURES…")
    if options["format"] not in ("table", "jsonl"):
        raise UserError(f"format={options['format']}: {nearest(options['format'], ['table', 'jsonl'])}")
    if not options["top_k"].isdigit() or int(options["top_k"]) < 1:
        raise UserError(f"top_k={options['top_k']}: must be a whole number of at least 1.")
    if not words:
        raise UserError("Which pictures? Name files or folders: python -m imgcls.predict run=DIR PICTURES…")
    files = list(picture_files(words))

    from imgcls.runs import load

    model = load(options["run"]).model
    width = max((len(str(file)) for file in files), default=0)
    unreadable = 0
    for start in range(0, len(files), BATCH):
        pictures, bad = _open(files[start : start + BATCH])
        unreadable += bad
        answers = model.top([picture for _, picture in pictures], int(options["top_k"])) if pictures else []
        for (file, _), answer in zip(pictures, answers, strict=True):
            if options["format"] == "jsonl":
                classes = [{"class": name, "probability": round(value, 6)} for name, value in answer]
                print(json.dumps({"file": str(file), "classes": classes}, ensure_ascii=False))
            else:
                print(f"{file!s:{width}}  " + "  ".join(f"{name} {value:.1%}" for name, value in answer))
    if unreadable:
        raise UnreadableError(f"{unreadable} of {len(files)} pictures could not be read.")


class UnreadableError(UserError):
    """Some pictures were no pictures; the others were answered."""

    exit_code = 1


def picture_files(words: Iterable[str]) -> Iterator[Path]:
    """The files that `words` name: files as they are, folders as all pictures in them, sorted."""
    from imgcls.pictures import PICTURE_SUFFIXES

    for word in words:
        path = Path(word).expanduser()
        if path.is_dir():
            inside = sorted(file for file in path.rglob("*") if file.suffix.lower() in PICTURE_SUFFIXES)
            if not inside:
                raise UserError(f"{word}: there is no picture in this folder.")
            yield from inside
        elif path.exists():
            yield path
        else:
            raise UserError(f"{word}: no such file.")


def _open(files: Iterable[Path]) -> tuple[list[tuple[Path, object]], int]:
    from imgcls.pictures import BadPicture, open_picture

    pictures: list[tuple[Path, object]] = []
    bad = 0
    for file in files:
        try:
            pictures.append((file, open_picture(file)))
        except BadPicture as error:
            bad += 1
            print(f"{file}: {error}", file=sys.stderr)
    return pictures, bad


def main() -> None:
    """The command line."""
    sys.exit(guarded(lambda: predict(sys.argv[1:])))


if __name__ == "__main__":
    main()
