"""`python -m imgcls.export run=DIR`: export a run's model.

usage: python -m imgcls.export run=DIR [format=portable|sagemaker] [checkpoint=best|last|FILE] [onnx=auto|true|false]
                               [calibrate=true|false] [known=0.95|auto|false] [examples=true|false]
                               [reference=true] [output=FILE] [trust=true] [data.root=DIR …]

usage: python -m imgcls.export run=DIR format=onnx|all [precision=fp32|fp16|int8] [preprocessing=graph] [output=DIR]
                               [trust=true] [data.root=DIR …]

format=portable writes `model/` in the run folder again, as at the end of the run, and compares it with the checkpoint
on validation images (`data.…` gives their current place). format=sagemaker packs the existing `model/` as
`model.tar.gz`, or `output=FILE`, with the code that SageMaker's PyTorch inference container needs to serve it.
`calibrate=true` also fits the temperature of the logits, and sets of classes, on the validation images, as at the end
of a run; `known=0.95` makes the model tell unknown images, such that it knows 95 % of these; `examples=false` keeps no
validation images beside the model; `reference=true` keeps what `python -m imgcls.monitor` compares images in use with.

format=onnx converts the existing `model/` and writes the result to `exports/onnx-int8/` in the run folder, or
`output=DIR`, with a certificate in its `model.json`: answers on up to 1,000 validation images, speed and size beside
float32 torch. precision=int8 takes the ranges of values from training images. A model that loses more accuracy than its
precision may (fp32: none, fp16: 0.1 points, int8: 0.5 points) is not written; of int8, the layers that do the most harm
stay in float32 first. preprocessing=graph lets the file take decoded images of any size, uint8 (N, H, W, 3), and return
probabilities: resizing, normalisation, temperature and the unknown score are in it. format=all writes all formats and
precisions and prints a table, and says what is missing.
`predict`, `evaluate` and `serve` run on the folder: run=DIR/exports/onnx-int8.
`trust=true` runs classes that are not imgcls's own, see docs/run-folder.md.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imgcls.cli import Option, announce, boolean, make_callable, read_options, run_command
from imgcls.errors import UserError
from imgcls.portable.formats import PRECISIONS
from imgcls.system.checks import check_value, choice, flag, share_or
from imgcls.system.extras import check_onnx
from imgcls.system.logs import without_lightning_messages

if TYPE_CHECKING:
    from imgcls.portable import Parity
    from imgcls.portable.conversion import Conversion
    from imgcls.runs.run import Run


def _known(text: str) -> float | bool | str:
    return False if text.lower() == "false" else text if text == "auto" else float(text)


CALIBRATION_IMAGES, VALIDATION_IMAGES, DECODED_IMAGES = 256, 1000, 100
KNOWN = share_or("auto", False)
OPTIONS = {
    "run": Option(),
    "format": Option("portable"),
    "precision": Option(None, choice(*PRECISIONS)),
    "preprocessing": Option(None, choice("graph")),
    "checkpoint": Option("best"),
    "onnx": Option("auto", choice("auto", True, False), boolean),
    "calibrate": Option(True, flag, boolean),
    "known": Option(None, KNOWN, _known),
    "examples": Option(None, flag, boolean),
    "reference": Option(False, flag, boolean),
    "output": Option(),
    "trust": Option(False, flag, boolean),
}


@without_lightning_messages()
def export(
    run: Run | str | Path,
    checkpoint: str = "best",
    *,
    onnx: bool = True,
    calibrate: bool = True,
    known: float | bool | str | None = None,
    examples: bool | None = None,
    reference: bool = False,
    overrides: Sequence[str] = (),
    trust: bool = False,
) -> dict[str, Parity]:
    """Write the portable model of `run` from a checkpoint.

    Args:
        run: a run with a checkpoint, or its folder.
        checkpoint: 'best', 'last', or the path of a checkpoint of this run.
        onnx: also write `model.onnx`, where the extra `onnx` is installed.
        calibrate: fit the temperature of the logits, and the sets of classes, on the validation images.
        known: the share of validation images that the model is to know, so that it tells unknown ones; 'auto': 0.95
            with a frozen backbone, else none; False: none; None: as in the run's configuration.
        examples: keep a few small validation images for the server's page; None: as in the run's configuration.
        reference: also write what `imgcls.monitor` compares images in use with; see `imgcls.monitoring.reference`.
        overrides: `data.…=…`, where the data set has moved.
        trust: instantiate classes that are not imgcls's own, and fetch from the addresses in the run's `config.yaml`.

    Returns:
        How well the files agree with the checkpoint; see `imgcls.portable.export`.

    Raises:
        UserError: no checkpoint, no images to check the export with, or a failed check.
    """
    from imgcls.config.trust import restore_configuration
    from imgcls.runs.provenance import read_configuration
    from imgcls.runs.run import checkpoint_file, run_in

    run = run_in(run)
    if any(override.startswith("data=") for override in overrides):
        raise UserError("An export is checked on the run's own data set. Use data.root=DIR where it has moved.")
    stored = read_configuration(run.folder)
    share, frozen = _given_share(stored, known)
    cfg = restore_configuration(stored, overrides, trust=trust)

    from imgcls.runs.reading import read_outputs
    from imgcls.training.build import build_data, build_trainer, restore_classifier
    from imgcls.training.checkpoint_io import read_checkpoint
    from imgcls.training.devices import choose_devices
    from imgcls.training.label_results import set_thresholds
    from imgcls.training.outputs import outputs_of
    from imgcls.training.results import export_model, fit_calibration
    from imgcls.training.unknown import fit_known

    state = read_checkpoint(checkpoint_file(run, checkpoint))["state_dict"]
    devices = replace(choose_devices("cpu", "auto"), indices=1)
    datamodule = build_data(cfg, devices)
    classifier = restore_classifier(cfg, datamodule, devices, state)
    calibration = sets = thresholds = None
    if classifier.multilabel:
        set_thresholds(classifier, datamodule, cfg.thresholds.aim, cfg.thresholds.at_least)
        thresholds = classifier.thresholds.tolist()
    elif calibrate and datamodule.source.val is not None:
        trainer = build_trainer(cfg, devices, datamodule, classifier, callbacks=[])
        validation = outputs_of(trainer, classifier, datamodule, "val")
        groups = datamodule.source.test.groups if datamodule.source.test is not None else None
        calibration, sets = fit_calibration(run.folder, validation, read_outputs(run.folder, "test"), groups)
    parities = export_model(
        run.folder,
        datamodule,
        classifier.network,
        run.metrics,
        onnx=onnx,
        thresholds=thresholds,
        calibration=calibration,
        sets=sets,
        examples=_examples(stored, examples),
        novelty=fit_known(share, datamodule, classifier.network, frozen=frozen),
    )
    if reference:
        from imgcls import portable
        from imgcls.data.samples import labelled_validation_pictures
        from imgcls.monitoring.reference import FILE, MOST, fit_reference

        pictures = labelled_validation_pictures(datamodule, MOST)
        fit_reference(portable.load(run.model_folder), pictures).save(run.model_folder / FILE)
    return parities


def _given_share(stored: Mapping[str, Any], known: float | bool | str | None) -> tuple[float | bool | str, bool]:
    """`known`, or where it is None what the configuration `stored` says, and whether its backbone is frozen."""
    if known is None:
        known = (stored.get("export") or {}).get("known")
        known = known if known is not None and KNOWN(known) is None else "auto"
    check_value("known", known, KNOWN)
    return known, (stored.get("model") or {}).get("freeze") == "backbone"


def _examples(stored: Mapping[str, Any], examples: bool | None) -> bool:
    """`examples`, or where it is None what the configuration `stored` says."""
    return (stored.get("export") or {}).get("examples") is True if examples is None else examples


def convert(
    run: Run | str | Path,
    formats: Sequence[tuple[str, str]],
    output: Path | None = None,
    overrides: Sequence[str] = (),
    *,
    in_graph: bool = False,
    trust: bool = False,
) -> Iterator[tuple[Path, Conversion | str]]:
    """Write the portable model of `run` in other formats, one after the other.

    Args:
        run: a finished run, or its folder.
        formats: names and precisions, such as ("onnx", "int8").
        output: the folder of the only format; None: `exports/onnx-int8` and so on in the run folder.
        overrides: `data.…=…`, where the data set has moved.
        in_graph: the files do the preprocessing too.
        trust: see `export`.

    Yields:
        The folder of each format with what was written, or, of several, the reason why nothing was.
    """
    from imgcls.data.samples import evaluation_batches, labelled_validation_pictures, sample_training_images
    from imgcls.evaluate import configuration_of
    from imgcls.portable.conversion import Conversions
    from imgcls.runs.run import run_in
    from imgcls.training.build import build_data
    from imgcls.training.devices import choose_devices

    run = run_in(run)
    cfg = configuration_of(run, "val", overrides, trust)
    data = build_data(cfg, replace(choose_devices("cpu", "auto"), indices=1))
    split = "val" if data.source.val is not None else "train"
    model, images = run.model.to("cpu"), sample_training_images(data, CALIBRATION_IMAGES).contiguous().numpy()
    conversions = Conversions(
        run.model_folder,
        model,
        images,
        lambda: evaluation_batches(data, split, VALIDATION_IMAGES),
        lambda: (picture for picture, _ in labelled_validation_pictures(data, DECODED_IMAGES)),
    )
    for name, precision in formats:
        folder = output or run.folder / "exports" / f"{name}-{precision}{'-graph' if in_graph else ''}"
        try:
            yield folder, conversions.convert(name, precision, folder, in_graph=in_graph)
        except UserError as error:
            if len(formats) == 1:
                raise
            yield folder, str(error)


def _convert(options: Mapping[str, Any], overrides: Sequence[str]) -> None:
    """Write the formats that `options` ask for, and print their certificates."""
    from imgcls.portable.formats import FORMATS, find_format

    name, precision = options["format"], options["precision"]
    if extra := [
        key for key in ("checkpoint", "known", "examples", "reference") if options[key] != OPTIONS[key].default
    ]:
        raise UserError(f"{extra[0]}= is for format=portable, which writes the model that format={name} converts.")
    if name == "all":
        if options["output"]:
            raise UserError("output= is for one format; format=all writes to exports/ of the run folder.")
        formats = [(form, each) for form in FORMATS for each in find_format(form).precisions]
        formats = [(form, each) for form, each in formats if precision in (None, each)]
    else:
        form = find_format(name)
        form.check()
        formats = [(name, precision or form.precisions[0])]
    announce("loading PyTorch, Lightning and timm")
    output = Path(options["output"]).expanduser() if options["output"] else None
    done = []
    in_graph = options["preprocessing"] == "graph"
    for folder, result in convert(
        options["run"], formats, output, overrides, in_graph=in_graph, trust=options["trust"]
    ):
        print(f"{folder}  {result}", flush=True)
        if not isinstance(result, str):
            done.append(result)
    if name == "all":
        print("\n".join(_table(done)))


def _table(done: Sequence[Conversion]) -> Iterator[str]:
    """The lines of the table of what was written, beside float32 torch."""
    if not done:
        return
    before = done[0].certificate
    row = "{:16} {:>8} {:>10} {:>10} {:>10}"
    yield row.format("", "MB", "ms/image", "images/s", "accuracy")
    rows = [("torch fp32", before.megabytes_before, before.latency_ms_before, before.images_per_second_before)]
    accuracies = [before.accuracy_before]
    for each in done:
        now = each.certificate
        rows.append((f"{each.format} {each.precision}", now.megabytes, now.latency_ms, now.images_per_second))
        accuracies.append(now.accuracy)
    for (label, size, latency, rate), accuracy in zip(rows, accuracies, strict=True):
        yield row.format(label, f"{size:.1f}", f"{latency:.1f}", f"{rate:.0f}", f"{accuracy:.2%}")


def _command(arguments: Sequence[str]) -> None:
    options, overrides, _ = read_options(arguments, OPTIONS, usage=__doc__ or "", overrides=("data",))
    if options["run"] is None:
        raise UserError("Give the run folder: run=DIR")
    if options["format"] not in ("portable", "sagemaker"):
        _convert(options, overrides)
        return
    for name, example in {"precision": "int8", "preprocessing": "graph"}.items():
        if options[name] is not None:
            raise UserError(f"{name}= is for other formats: format=onnx {name}={example}")
    if options["format"] == "sagemaker":
        from imgcls.serve.archive import write_archive

        folder = Path(options["run"]).expanduser()
        target = Path(options["output"]).expanduser() if options["output"] else folder / "model.tar.gz"
        file = write_archive(folder, target)
        print(f"{file}  {file.stat().st_size / 1e6:.1f} MB, for SageMaker's PyTorch inference container")
        return
    if options["output"]:
        raise UserError("output= is for the other formats; the portable model is in model/ of the run folder.")
    if options["onnx"] is True:
        check_onnx("onnx=true")
    announce("loading PyTorch, Lightning and timm")
    from imgcls.runs.run import load

    run = load(options["run"])
    found = export(
        run,
        options["checkpoint"],
        onnx=options["onnx"] is not False,
        calibrate=options["calibrate"],
        known=options["known"],
        examples=options["examples"],
        reference=options["reference"],
        overrides=overrides,
        trust=options["trust"],
    )
    for name, parity in found.items():
        print(f"{name:12} {parity}")
    print(run.folder / "model")


def main() -> None:
    """Run the command line."""
    run_command(lambda: _command(sys.argv[1:]))


make_callable(__name__, export)

if __name__ == "__main__":
    main()
