"""`python -m imgcls.export run=DIR`: export a run's model.

usage: python -m imgcls.export run=DIR [format=portable|sagemaker] [checkpoint=best|last|FILE] [onnx=auto|true|false]
                               [calibrate=true|false] [known=0.95|auto|false] [examples=true|false]
                               [reference=true] [output=FILE] [trust=true] [data.root=DIR …]

format=portable writes `model/` in the run folder again, as at the end of the run, and compares it with the checkpoint
on validation images (`data.…` gives their current place). format=sagemaker packs the existing `model/` as
`model.tar.gz`, or `output=FILE`, with the code that SageMaker's PyTorch inference container needs to serve it.
`calibrate=true` also fits the temperature of the logits, and sets of classes, on the validation images, as at the end
of a run; `known=0.95` makes the model tell unknown images, such that it knows 95 % of these; `examples=false` keeps no
validation images beside the model; `reference=true` keeps what `python -m imgcls.monitor` compares images in use with.
`trust=true` runs classes that are not imgcls's own, see docs/run-folder.md.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imgcls.cli import Option, announce, boolean, guarded, make_callable, read_options
from imgcls.errors import UserError
from imgcls.system.checks import check_value, choice, flag, share_or
from imgcls.system.extras import check_onnx

if TYPE_CHECKING:
    from imgcls.portable import Parity
    from imgcls.runs.run import Run


def _known(text: str) -> float | bool | str:
    return False if text.lower() == "false" else text if text == "auto" else float(text)


KNOWN = share_or("auto", False)
OPTIONS = {
    "run": Option(),
    "format": Option("portable", choice("portable", "sagemaker")),
    "checkpoint": Option("best"),
    "onnx": Option("auto", choice("auto", True, False), boolean),
    "calibrate": Option(True, flag, boolean),
    "known": Option(None, KNOWN, _known),
    "examples": Option(None, flag, boolean),
    "reference": Option(False, flag, boolean),
    "output": Option(),
    "trust": Option(False, flag, boolean),
}


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


def _command(arguments: Sequence[str]) -> None:
    options, overrides, _ = read_options(arguments, OPTIONS, usage=__doc__ or "", overrides=("data",))
    if options["run"] is None:
        raise UserError("Give the run folder: run=DIR")
    if options["format"] == "sagemaker":
        from imgcls.serve.archive import write_archive

        folder = Path(options["run"]).expanduser()
        target = Path(options["output"]).expanduser() if options["output"] else folder / "model.tar.gz"
        file = write_archive(folder, target)
        print(f"{file}  {file.stat().st_size / 1e6:.1f} MB, for SageMaker's PyTorch inference container")
        return
    if options["output"]:
        raise UserError("output= is for format=sagemaker; the portable model is in model/ of the run folder.")
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
    sys.exit(guarded(lambda: _command(sys.argv[1:])))


make_callable(__name__, export)

if __name__ == "__main__":
    main()
