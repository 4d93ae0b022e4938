"""`python -m imgcls.monitor captured/ run=DIR`: are the images in use still like those of validation?

usage: python -m imgcls.monitor CAPTURED run=DIR [output=monitor.html]

CAPTURED is a folder of requests that `python -m imgcls.serve capture=DIR` or SageMaker's data capture has kept, also
s3://BUCKET/PREFIX, or a folder of images in the order of their names. run= is a run folder, or the folder of a portable
model, with the reference that `python -m imgcls.export run=DIR reference=true` writes. Watches confidence, predicted
classes, unknown images, features, and how bright, contrasting and sharp the images are; estimates the accuracy without
labels; writes a page. The exit code is 0 without drift, 3 with drift, 2 for an error. Needs torch.
"""

from __future__ import annotations

import heapq
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imgcls.cli import Option, announce, make_callable, read_options, run_command
from imgcls.errors import UserError

if TYPE_CHECKING:
    import numpy as np

    from imgcls.monitoring.measures import Measures
    from imgcls.monitoring.reference import Reference
    from imgcls.portable import PortableModel

OPTIONS = {"run": Option(), "output": Option("monitor.html")}
UNUSUAL = 12  # images on the page
BATCH = 32
SIDE_PX = 128


class DriftError(UserError):
    """The images have drifted."""

    exit_code = 3


def monitor(captured: str | Path, run: str | Path, output: str | Path = "monitor.html") -> dict[str, Any]:
    """Compare captured images with the reference of a model, and write the page `output`.

    Args:
        captured: a folder of captured requests or images, or s3://BUCKET/PREFIX.
        run: a run folder, or the folder of a portable model.
        output: the page.

    Returns:
        `images`, `unreadable`, the estimated `accuracy` with its bounds `accuracy_low` and `accuracy_high`,
        `reference_accuracy`, and `drift`: after how many images each number that has drifted was noticed.

    Raises:
        UserError: there is no reference, nothing captured, or it cannot be read.
    """
    announce("loading PyTorch and the model")
    from imgcls import portable
    from imgcls.monitoring import detection
    from imgcls.monitoring.page import as_picture, write_page
    from imgcls.monitoring.reference import FILE, MISSING, Reference
    from imgcls.runs.run import find_model

    folder = find_model(run)
    if not (folder / FILE).is_file():
        raise UserError(f"run={run}: {MISSING.format(run=run)}")
    reference, model = Reference.load(folder / FILE), portable.load(folder, "torch", device=None)
    unusual: list[tuple[float, int, str, bytes]] = []
    stream, unreadable = _measure(captured, model, reference, unusual)
    watched = detection.watch(reference, stream)
    accuracy = detection.estimate_accuracy(reference, stream)
    drift = {found.name: found.alarm for found in watched if found.alarm is not None}
    found = {
        "images": len(stream),
        "unreadable": unreadable,
        "accuracy": accuracy.value,
        "accuracy_low": accuracy.low,
        "accuracy_high": accuracy.high,
        "reference_accuracy": float(reference.correct.mean()),
        "drift": drift,
    }
    write_page(
        Path(output).expanduser(),
        captured=str(captured),
        sentence=describe(found),
        reference=reference,
        stream=stream,
        watched=watched,
        accuracy=accuracy,
        class_names=model.class_names,
        unusual=[
            as_picture(jpeg, f"image {number + 1}", predicted, f"damage {score:.1f}")
            for score, number, predicted, jpeg in sorted(unusual, reverse=True)
        ],
    )
    return found


def describe(found: dict[str, Any]) -> str:
    """What `monitor` has found, in a sentence or two."""
    accuracy = (
        f"The estimated accuracy is {found['accuracy']:.1%} ({found['accuracy_low']:.1%} to "
        f"{found['accuracy_high']:.1%}), {found['reference_accuracy']:.1%} on the validation images."
    )
    if not found["drift"]:
        return f"No drift in {found['images']:,} images. {accuracy}"
    first = min(found["drift"].values())
    names = ", ".join(found["drift"])
    return f"Drift was noticed after {first:,} of {found['images']:,} images: {names}. {accuracy}"


def _measure(
    captured: str | Path, model: PortableModel, reference: Reference, unusual: list[tuple[float, int, str, bytes]]
) -> tuple[Measures, int]:
    """The numbers of all captured images, and how many cannot be read; the most unusual ones into `unusual`."""
    import numpy as np

    from imgcls.monitoring.measures import Measures, measure
    from imgcls.monitoring.reference import vectors

    parts: list[Measures] = []
    done = unreadable = 0
    for images, bad in _batches(captured, model):
        unreadable += bad
        if not images:
            continue
        parts.append(reference.project(measure(model, np.stack(images))))
        scores = reference.damage(vectors(parts[-1])).max(axis=1)
        for place, score in enumerate(scores.tolist()):
            if len(unusual) < UNUSUAL or score > unusual[0][0]:
                name = model.class_names[parts[-1].predicted[place]]
                entry = score, done + place, name, _thumbnail(images[place], model)
                (heapq.heappush if len(unusual) < UNUSUAL else heapq.heapreplace)(unusual, entry)
        done += len(images)
    if not parts:
        raise UserError(f"{captured}: none of {unreadable:,} requests holds an image that can be read.")
    return Measures.concatenate(parts), unreadable


def _batches(captured: str | Path, model: PortableModel) -> Iterator[tuple[list[np.ndarray], int]]:
    """Batches of float32 (C, S, S) images, each with the number of those that cannot be read."""
    from imgcls.aws.download import local_root, synchronise
    from imgcls.aws.s3 import is_remote
    from imgcls.monitoring.captured import read_captured
    from imgcls.serve.predictor import Predictor
    from imgcls.serve.refusals import Refusal

    folder = local_root(captured, option="CAPTURED")
    assert folder is not None
    if is_remote(captured):
        synchronise(str(captured), folder, option="CAPTURED")
    predictor, images, bad = Predictor(model), [], 0
    for item in read_captured(folder, model.preprocessing.depth):
        try:
            if isinstance(item, Refusal):
                raise item
            images.append(predictor.image(item))
        except Refusal:
            bad += 1
        if len(images) == BATCH:
            yield images, bad
            images, bad = [], 0
    yield images, bad


def _thumbnail(image: np.ndarray, model: PortableModel) -> bytes:
    import numpy as np
    from PIL import Image

    from imgcls.portable.examples import encode

    offset, scale = (values[:, None, None] for values in model.preprocessing.offset_and_scale())
    pixels = np.clip(np.rint(image / scale + offset), 0, 255).astype(np.uint8)
    pixels = np.moveaxis(pixels if len(pixels) == 3 else np.repeat(pixels[:1], 3, axis=0), 0, -1)
    return encode(Image.fromarray(np.ascontiguousarray(pixels)), SIDE_PX)


def _command(arguments: Sequence[str]) -> None:
    options, _, rest = read_options(arguments, OPTIONS, usage=__doc__ or "", others=1)
    if options["run"] is None or not rest:
        raise UserError("Give a folder and a run: python -m imgcls.monitor captured run=DIR")
    found = monitor(rest[0], options["run"], options["output"])
    print(describe(found))
    if found["unreadable"]:
        print(f"{found['unreadable']:,} images could not be read, such as those of URLs.")
    print(options["output"])
    if found["drift"]:
        raise DriftError(f"the images have drifted: {options['output']} shows how.")


def main() -> None:
    """Run the command line."""
    run_command(lambda: _command(sys.argv[1:]))


make_callable(__name__, monitor)

if __name__ == "__main__":
    main()
