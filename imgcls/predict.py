"""`python -m imgcls.predict run=DIR PICTURES…`: classify images with a finished run.

usage: python -m imgcls.predict run=DIR [top_k=5] [format=table|jsonl] [engine=auto|onnx|torch] PICTURES…
       python -m imgcls.predict endpoint=URL-or-SageMaker-name [top_k=5] [format=table|jsonl] PICTURES…

PICTURES are files or folders (all images in them). An image that cannot be read is named on stderr, the others are
classified, and the exit code is 1. `endpoint=` uses a server of `imgcls.serve`, or a SageMaker endpoint. `engine=auto`
is ONNX Runtime where it is installed and the run has a `model.onnx`, else torch.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from imgcls.cli import Option, guarded, read_options
from imgcls.data.sources import picture_name
from imgcls.errors import UserError
from imgcls.portable.engines import ENGINES
from imgcls.system.checks import choice, whole

if TYPE_CHECKING:
    from imgcls.serve.client import Client

BATCH = 32
OPTIONS = {
    "run": Option(),
    "endpoint": Option(),
    "top_k": Option(5, whole(1), int),
    "format": Option("table", choice("table", "jsonl")),
    "engine": Option("auto", choice(*ENGINES)),
}

Classes = list[tuple[str, float]]
Answers = Iterator[tuple[Path, Classes | str]]
"""Files with their likeliest classes, or the reason why there are none."""


def predict(arguments: Sequence[str]) -> None:
    """Print the likeliest classes of each image."""
    options, _, paths = read_options(arguments, OPTIONS, usage=__doc__ or "", others=None)
    if (options["run"] is None) == (options["endpoint"] is None):
        raise UserError(
            "Give the run folder: python -m imgcls.predict run=DIR PICTURES… "
            "Or ask a server: python -m imgcls.predict endpoint=URL PICTURES…"
        )
    if not paths:
        raise UserError("Give image files or folders: python -m imgcls.predict run=DIR PICTURES…")
    files = list(picture_files(paths))
    if options["endpoint"] is not None:
        from imgcls.serve.client import Client

        answers = _ask(Client(options["endpoint"]), files, options["top_k"])
    else:
        answers = _compute(options["run"], options["engine"], files, options["top_k"])
    show = _as_json if options["format"] == "jsonl" else _as_row(max((len(str(file)) for file in files), default=0))
    unreadable = 0
    for file, answer in answers:
        if isinstance(answer, str):
            unreadable += 1
            print(f"{picture_name(str(file))}: {answer}", file=sys.stderr)
        else:
            print(show(file, answer))
    if unreadable:
        raise UnreadableError(f"{unreadable} of {len(files)} images could not be read.")


class UnreadableError(UserError):
    """Some images could not be read; the others were classified."""

    exit_code = 1


def _compute(run: str, engine: str, files: Sequence[Path], top_k: int) -> Answers:
    """Classify with the run's model here, a batch at a time."""
    from imgcls import portable
    from imgcls.pictures import BadPicture, open_picture
    from imgcls.runs.run import load

    model = portable.load(load(run).model_folder, engine, device=None)
    for start in range(0, len(files), BATCH):
        answers: dict[Path, Classes | str] = {}
        pictures = {}
        for file in files[start : start + BATCH]:
            try:
                pictures[file] = open_picture(file)
            except BadPicture as error:
                answers[file] = str(error)
        answers |= zip(pictures, model.top(list(pictures.values()), top_k), strict=True)
        yield from ((file, answers[file]) for file in files[start : start + BATCH])


def _ask(client: Client, files: Sequence[Path], top_k: int) -> Answers:
    """Classify with the endpoint; an error that is not about an image ends the command."""
    from concurrent.futures import ThreadPoolExecutor

    from imgcls.serve.client import EndpointError

    def predict_one(file: Path) -> Classes | str:
        try:
            return client.predict_one(file, top_k)
        except EndpointError as error:
            if error.status not in (400, 413, 415):
                raise
            return str(error)

    with ThreadPoolExecutor(client.parallel) as pool:
        yield from zip(files, pool.map(predict_one, files), strict=True)


def _as_json(file: Path, answer: Classes) -> str:
    classes = [{"class": name, "probability": round(value, 6)} for name, value in answer]
    return json.dumps({"file": picture_name(str(file)), "classes": classes}, ensure_ascii=False)


def _as_row(width: int) -> Callable[[Path, Classes], str]:
    def show(file: Path, answer: Classes) -> str:
        return f"{picture_name(str(file)):{width}}  " + "  ".join(f"{name} {value:.1%}" for name, value in answer)

    return show


def picture_files(paths: Iterable[str]) -> Iterator[Path]:
    """The files in `paths`, with folders replaced by the images that a training finds in them, sorted."""
    from imgcls.data.folders import describe_unrecognised, pictures_in

    for name in paths:
        path = Path(name).expanduser()
        if path.is_dir():
            others: list[str] = []
            inside = pictures_in(path, others=others)
            hint = describe_unrecognised([str(path / other) for other in others])
            if not inside:
                raise UserError(f"{name}: no images in this folder. {hint}".rstrip())
            if hint:
                print(f"{name}: {hint}", file=sys.stderr)
            yield from (path / place for place in inside)
        elif path.exists():
            yield path
        else:
            raise UserError(f"{name}: no such file.")


def main() -> None:
    """Run the command line."""
    sys.exit(guarded(lambda: predict(sys.argv[1:])))


if __name__ == "__main__":
    main()
