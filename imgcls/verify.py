"""`python -m imgcls.verify MODEL IMAGES…`: what a model must pass before it is deployed.

usage: python -m imgcls.verify MODEL IMAGES… [reference=DIR]

MODEL is a folder that `imgcls.export` wrote, or a run or portable model, whose `model.onnx` is then verified. IMAGES
are files or folders (all images in them); where each image is in a folder with the name of its class, accuracy is
compared too. The answers are compared with those of the float32 network in torch: of the run in whose `exports/` MODEL
is, of MODEL itself, or of `reference=DIR`.

`certificate.json` in MODEL then has answers, accuracy, latency, throughput and size, beside those of the network, and
the SHA-256 of each file. The command fails (exit code 2) where the model loses more than its precision may: fp32
nothing, fp16 0.1 points, int8 0.5 points of accuracy, or, without labels, of the images with the same class.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imgcls.cli import Option, read_options, run_command
from imgcls.errors import UserError
from imgcls.predict import picture_files
from imgcls.system.files import atomic_write_text

if TYPE_CHECKING:
    import numpy as np

    from imgcls.portable.certificate import Certificate
    from imgcls.portable.model import PortableModel

OPTIONS = {"reference": Option()}


def verify(folder: Path, files: Sequence[str], reference: Path) -> Certificate:
    """Compare the model in `folder` with the network in `reference` on the images in `files`; write `certificate.json`.

    Images that cannot be read are named on stderr and left out. Raises UserError if no image can be read, or, after the
    certificate is written, if the model loses more than its precision may.
    """
    from imgcls import portable
    from imgcls.portable.certificate import (
        CERTIFICATE,
        TOLERANCE_POINTS,
        answers,
        certify,
        file_digests,
        measure_speed,
        size_mb,
    )
    from imgcls.portable.description import WEIGHTS

    model, before = portable.load(folder, "auto", "cpu"), portable.load(reference, "torch")
    if model.class_names != before.class_names or model.preprocessing != before.preprocessing:
        raise UserError(f"{folder} and {reference} have other classes or another preprocessing: they are two models.")
    batches = _read(files, model)
    if not batches:
        raise UserError("None of the images can be read: there is no certificate.")

    def read() -> Any:
        return ((model.preprocessing.normalise(pixels), labels) for pixels, labels in batches)

    shape = model.preprocessing.channels, *model.preprocessing.shape
    expected, now = (
        answers(each.engine, read, each.activation, len(each.class_names), each.thresholds) for each in (before, model)
    )
    speeds = measure_speed(before.engine, shape), measure_speed(model.engine, shape)
    sizes = (reference / WEIGHTS).stat().st_size / 1e6, size_mb(folder)
    certificate = certify(expected, now, speeds, sizes)
    precision = model.precision
    passed = certificate.points_lost <= TOLERANCE_POINTS[precision] + 1e-9
    content = {
        "passed": passed,
        "engine": model.engine.name,
        "precision": precision,
        **certificate.as_dict(),
        "sha256": file_digests(folder),
    }
    atomic_write_text(folder / CERTIFICATE, json.dumps(content, indent=2) + "\n")
    if not passed:
        raise UserError(
            f"{folder} loses {certificate.points_lost:.2f} points ({TOLERANCE_POINTS[precision]:g} are allowed): "
            f"{certificate}."
        )
    return certificate


def _read(files: Sequence[str], model: PortableModel) -> list[tuple[np.ndarray, np.ndarray | None]]:
    """The images in batches, uint8 (n, S, S, 3), with their labels, int64 (n,), or None where a folder is no class."""
    import numpy as np

    from imgcls.portable.reading import read_batches

    places = {name: place for place, name in enumerate(model.class_names)}
    batches = []
    with closing(read_batches(files, model.preprocessing)) as parts:
        for names, pixels in parts:
            read = {name: image for name, image in zip(names, pixels, strict=True) if not isinstance(image, str)}
            for name, reason in zip(names, pixels, strict=True):
                if isinstance(reason, str):
                    print(f"{name}: {reason}", file=sys.stderr)
            labels = [places.get(Path(name).parent.name) for name in read]
            known = model.thresholds is None and None not in labels
            if read:
                batches.append((np.stack(list(read.values())), np.array(labels) if known else None))
    return batches


def _command(arguments: Sequence[str]) -> None:
    options, _, paths = read_options(arguments, OPTIONS, usage=__doc__ or "", others=None)
    if len(paths) < 2:
        raise UserError("Give a model and images: python -m imgcls.verify runs/first/exports/onnx-int8 pictures")
    from imgcls.runs.run import find_model

    folder = find_model(paths[0])
    run = folder.resolve().parents[1]
    reference = run if folder.parent.name == "exports" and (run / "config.yaml").is_file() else folder
    files = [str(file) for file in picture_files(paths[1:])]
    print(verify(folder, files, find_model(options["reference"] or reference)))
    from imgcls.portable.certificate import CERTIFICATE

    print(folder / CERTIFICATE)


def main() -> None:
    """Run the command line."""
    run_command(lambda: _command(sys.argv[1:]))


if __name__ == "__main__":
    main()
