"""`python -m imgcls.doctor`: what this machine has, and what is missing for each feature.

usage: python -m imgcls.doctor

Prints a table of versions, devices, memory, disk, the cache, the installed extras, and whether pretrained weights and
AWS can be reached. It changes nothing, and missing things are not errors. Paste it into bug reports.
"""

from __future__ import annotations

import importlib.metadata as metadata
import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from imgcls import __version__
from imgcls.cli import announce, read_options, run_command
from imgcls.system.extras import CORE, Extra, find_extras
from imgcls.system.files import size_of
from imgcls.system.machine import available_cores, free_inodes, free_memory, nearest_existing, total_memory

TIMEOUT_SECONDS = 3.0  # of each address
GIB = 2**30
FEW_INODES = 10_000

FEATURES = {
    CORE: "prepare, train, evaluate, predict, report",
    "onnx": "model/model.onnx in each run folder",
    "openvino": "models for Intel's processors: imgcls.export format=openvino",
    "search": "searches with Optuna: -m hydra/sweeper=optuna",
    "serve": "python -m imgcls.serve, and predict without torch",
    "parquet": "tables in Parquet: data.table=labels.parquet",
    "lora": "low-rank adapters: model.adapter=lora",
    "jpeg": "JPEG files decoded faster in training",
    "tiff": "TIFF files of many bands: model.in_channels=5",
    "huggingface": "data sets of the Hugging Face hub: data=huggingface",
    "s3": "images in S3: data.root=s3://bucket/prefix",
    "tensorboard": "logger=tensorboard",
    "mlflow": "logger=mlflow",
    "wandb": "logger=wandb",
    "sagemaker": "jobs and endpoints of SageMaker: launch=sagemaker",
    "rehearsal": "the same jobs on this machine: launch=rehearsal",
    "tuning": "tuning jobs too: hydra/sweeper=sagemaker launch=rehearsal",
    "debugger": "smdebug trials: debug.smdebug=true",
    "gpu": "GPUs in the profile of a run",
    "notebooks": "the notebooks",
    "docs": "this documentation as pages: sphinx-build",
    "dev": "the tests and linters",
    "all": "most of the above",
}
"""What each extra is for; others are listed by name only."""

PACKAGES = ("torch", "torchvision", "lightning", "timm", "torchmetrics", "hydra-core", "numpy", "pillow")


class Row(NamedTuple):
    """One line of the table."""

    name: str
    text: str
    mark: str = ""
    """`ok`, `missing`, or empty where neither applies."""


Probe = Callable[[], Iterable[Row]]


def examine() -> dict[str, list[Row]]:
    """The sections of the table. A failed probe is a row that says so, never an error."""
    probes: dict[str, Sequence[tuple[str, Probe]]] = {
        "machine": [("system", system), ("memory", memory), ("devices", devices), ("disk", disk), ("cache", cache)],
        "packages": [("versions", versions)],
        "features": [("extras", features)],
        "access": [("weights", weights), ("AWS", aws)],
    }
    with ThreadPoolExecutor() as pool:  # most of the time is spent waiting for responses and for torch
        running = {
            section: [pool.submit(_guarded, name, probe) for name, probe in members]
            for section, members in probes.items()
        }
        return {section: [row for probe in members for row in probe.result()] for section, members in running.items()}


def _guarded(name: str, probe: Probe) -> list[Row]:
    try:
        return list(probe())
    except Exception as error:  # whatever a broken installation raises
        first = next(iter(str(error).splitlines()), "")
        return [Row(name, f"cannot be examined: {type(error).__name__}: {first}", "missing")]


def system() -> Iterator[Row]:
    """Python, the operating system, the processors."""
    yield Row("python", f"{platform.python_version()} in {sys.prefix}")
    yield Row("system", platform.platform())
    usable, total = available_cores(), os.cpu_count()
    text = f"{total} cores" if usable == total else f"{usable} of {total} cores may be used"
    yield Row("processors", f"{platform.processor() or platform.machine()}, {text}")


def memory() -> Iterator[Row]:
    """Free and total memory, of the machine or of the container."""
    yield Row("memory", f"{free_memory() / GIB:.1f} of {total_memory() / GIB:.1f} GiB free")


def devices() -> Iterator[Row]:
    """The devices that torch computes on."""
    import torch

    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        free, total = torch.cuda.mem_get_info(index)
        precision = "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
        text = f"{torch.cuda.get_device_name(index)}, {free / GIB:.1f} of {total / GIB:.1f} GiB free, {precision}"
        yield Row(f"cuda:{index}", text, "ok")
    if torch.cuda.is_available():
        return
    if torch.backends.mps.is_available():
        yield Row("mps", "Apple GPU", "ok")
    elif torch.version.cuda or torch.version.hip:
        yield Row("devices", f"the CPU; no GPU is available to torch {torch.__version__}")
    elif shutil.which("nvidia-smi"):
        yield Row("devices", f"the CPU: there is a GPU, but torch {torch.__version__} is built without CUDA", "missing")
    else:
        yield Row("devices", f"the CPU; torch {torch.__version__} is built for no other device")


def disk() -> Iterator[Row]:
    """Free disk space for run folders."""
    yield Row("disk", f"{_room(Path.cwd())} in {Path.cwd()}, where runs/ is written")


def cache() -> Iterator[Row]:
    """The content of the cache folder, and the free disk space."""
    from imgcls.system.cache import cache_folder

    folder = cache_folder()
    sizes = {part.name: size_of(part) for part in sorted(folder.glob("*/"))}
    parts = [f"{name} {size / GIB:.1f} GiB" for name, size in sizes.items() if size > GIB / 20]
    yield Row("cache", f"{_room(folder)} in {folder} (IMGCLS_CACHE){': ' if parts else ''}{', '.join(parts)}")


def versions() -> Iterator[Row]:
    """The packages whose versions affect results."""
    for name in PACKAGES:
        try:
            yield Row(name, metadata.version(name))
        except metadata.PackageNotFoundError:
            yield Row(name, "not installed", "missing")


def features() -> Iterator[Row]:
    """The extras, and what each still needs."""
    for name, extra in find_extras().items():
        title = name or "imgcls"
        what = FEATURES.get(name, "")
        yield Row(title, what, "ok") if extra.complete else Row(title, _how_to_complete(extra, what), "missing")


def _how_to_complete(extra: Extra, what: str) -> str:
    if not extra.offered:
        return f"{what}; not for Python {platform.python_version()}"
    misfits = [lack for lack in extra.missing if "(here is" in lack]
    why = f", for {', '.join(misfits)}" if misfits else ""
    command = f"pip install 'imgcls[{extra.name}]'" if extra.name else "pip install imgcls"
    return f"{what}{' ' if what else ''}({command}{why})"


def weights() -> Iterator[Row]:
    """Whether the hub of timm's pretrained weights can be reached, and how many are cached."""
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session

    cached = f"{len(list(Path(constants.HF_HUB_CACHE).glob('models--timm--*')))} models of timm are in its cache"
    if constants.HF_HUB_OFFLINE:
        yield Row("weights", f"HF_HUB_OFFLINE is set, so only cached weights can be used: {cached}")
        return
    try:
        get_session().head(constants.ENDPOINT, timeout=TIMEOUT_SECONDS)
        yield Row("weights", f"{constants.ENDPOINT} answers; {cached}", "ok")
    except Exception as error:  # of whichever HTTP library the hub uses
        silence = f"{constants.ENDPOINT} does not answer ({type(error).__name__})"
        advice = "use model.weights=FILE or model.pretrained=false"
        yield Row("weights", f"{silence}; {cached}. Without it {advice}", "missing")


def aws() -> Iterator[Row]:
    """The identity that AWS sees."""
    try:
        import boto3
        from botocore.config import Config
    except ImportError:
        yield Row("AWS", "not examined: boto3 is not installed, see s3")
        return
    from imgcls.aws.refusals import explain

    quick = Config(connect_timeout=TIMEOUT_SECONDS, read_timeout=TIMEOUT_SECONDS, retries={"total_max_attempts": 1})
    try:
        session: Any = boto3.Session()
        client = session.client("sts", config=quick, region_name=session.region_name or "us-east-1")
        yield Row("AWS", f"{client.get_caller_identity()['Arn']}, region {session.region_name or 'not set'}", "ok")
        if session.region_name is None:
            yield Row("AWS region", "set AWS_DEFAULT_REGION, for example to eu-central-1", "missing")
    except Exception as error:
        explained = explain(error, "ask AWS who you are")
        if explained is None:
            raise
        yield Row("AWS", str(explained), "missing")


def _room(folder: Path) -> str:
    usage, inodes = shutil.disk_usage(nearest_existing(folder)), free_inodes(folder)
    few = f", and inodes for only {inodes:,} files" if inodes is not None and inodes < FEW_INODES else ""
    return f"{usage.free / GIB:.1f} of {usage.total / GIB:.1f} GiB free{few}"


def table(sections: dict[str, list[Row]]) -> str:
    """The sections as text for a terminal."""
    rows = [row for members in sections.values() for row in members]
    name, mark = (max((len(getattr(row, field)) for row in rows), default=0) for field in ("name", "mark"))
    lines = [f"imgcls {__version__} in {Path(__file__).parent}"]
    for title, members in sections.items():
        lines += ["", title, *(f"  {row.name:{name}}  {row.mark:{mark}}  {row.text}".rstrip() for row in members)]
    return "\n".join(lines)


def main() -> None:
    """Run the command line."""
    run_command(lambda: _command(sys.argv[1:]))


def _command(arguments: Sequence[str]) -> None:
    read_options(arguments, {}, usage=__doc__ or "")
    announce("examining this machine, up to ten seconds")
    print(table(examine()))


if __name__ == "__main__":
    main()
