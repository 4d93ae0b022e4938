"""`python -m imgcls.doctor`: what this machine has, and what is missing for which feature.

usage: python -m imgcls.doctor

Prints one table: versions, devices, memory, disk, the cache, the extras that are installed, whether pretrained weights
and AWS can be reached. Nothing is changed and nothing fails because it is missing. Paste it into the report of a bug.
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
from imgcls.cli import guarded, read_options
from imgcls.system.extras import CORE, Extra, find_extras
from imgcls.system.machine import available_cores, free_memory, total_memory

PATIENCE = 3.0  # seconds that an address may take to answer
GIB = 2**30

FEATURES = {
    CORE: "prepare, train, evaluate, predict, report",
    "onnx": "model/model.onnx in each run folder",
    "search": "searches with Optuna: -m hydra/sweeper=optuna",
    "serve": "python -m imgcls.serve, and predict without torch",
    "s3": "pictures in S3: data.root=s3://bucket/prefix",
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
}
"""What each extra is for; others are listed by their name alone."""

PACKAGES = ("torch", "torchvision", "lightning", "timm", "torchmetrics", "hydra-core", "numpy", "pillow")


class Row(NamedTuple):
    """One line of the table."""

    name: str
    text: str
    mark: str = ""
    """`ok`, `missing`, or nothing where there is no right and wrong."""


Probe = Callable[[], Iterable[Row]]


def examine() -> dict[str, list[Row]]:
    """The sections of the table. What cannot be looked at is a row that says so, never an error."""
    probes: dict[str, Sequence[tuple[str, Probe]]] = {
        "machine": [("system", system), ("memory", memory), ("devices", devices), ("disk", disk), ("cache", cache)],
        "packages": [("versions", versions)],
        "features": [("extras", features)],
        "access": [("weights", weights), ("AWS", aws)],
    }
    with ThreadPoolExecutor() as pool:  # most of the time goes into waiting for answers and for torch
        running = {
            section: [pool.submit(_guarded, name, probe) for name, probe in members]
            for section, members in probes.items()
        }
        return {section: [row for one in members for row in one.result()] for section, members in running.items()}


def _guarded(name: str, probe: Probe) -> list[Row]:
    try:
        return list(probe())
    except Exception as error:  # whatever a broken installation raises: it is the answer
        said = next(iter(str(error).splitlines()), "")
        return [Row(name, f"cannot be looked at: {type(error).__name__}: {said}", "missing")]


def system() -> Iterator[Row]:
    """Python, the operating system, the processors."""
    yield Row("python", f"{platform.python_version()} in {sys.prefix}")
    yield Row("system", platform.platform())
    usable, there = available_cores(), os.cpu_count()
    text = f"{there} cores" if usable == there else f"{usable} of {there} cores may be used"
    yield Row("processors", f"{platform.processor() or platform.machine()}, {text}")


def memory() -> Iterator[Row]:
    """Free and total, of the machine or of the container that this runs in."""
    yield Row("memory", f"{free_memory() / GIB:.1f} of {total_memory() / GIB:.1f} GiB free")


def devices() -> Iterator[Row]:
    """What torch computes on."""
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
        yield Row("devices", f"the CPU; no GPU answers to torch {torch.__version__}")
    elif shutil.which("nvidia-smi"):
        yield Row("devices", f"the CPU: here is a GPU, but torch {torch.__version__} is built without CUDA", "missing")
    else:
        yield Row("devices", f"the CPU; torch {torch.__version__} is built for no other device")


def disk() -> Iterator[Row]:
    """Room for run folders."""
    yield Row("disk", f"{_room(Path.cwd())} in {Path.cwd()}, where runs/ is written")


def cache() -> Iterator[Row]:
    """What is kept in the cache folder, and the room that is left."""
    from imgcls.system.cache import cache_folder

    folder = cache_folder()
    parts = [f"{part.name} {size / GIB:.1f} GiB" for part in _folders(folder) if (size := _size(part)) > GIB / 20]
    yield Row("cache", f"{_room(folder)} in {folder} (IMGCLS_CACHE){': ' if parts else ''}{', '.join(parts)}")


def versions() -> Iterator[Row]:
    """The packages whose versions matter for a number."""
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
    wants = ", ".join(extra.missing[:4]) + (" …" if extra.missing[4:] else "")
    command = f"pip install 'imgcls[{extra.name}]'" if extra.name else "pip install imgcls"
    return f"{what}{' ' if what else ''}(needs {wants}: {command})"


def weights() -> Iterator[Row]:
    """Where timm's pretrained weights come from: the hub, or what was fetched before."""
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session

    fetched = len(list(Path(constants.HF_HUB_CACHE).glob("models--timm--*")))
    kept = f"{fetched} models of timm are in its cache"
    if constants.HF_HUB_OFFLINE:
        yield Row("weights", f"HF_HUB_OFFLINE is set, so only what was fetched before: {kept}")
        return
    try:
        get_session().head(constants.ENDPOINT, timeout=PATIENCE)
        yield Row("weights", f"{constants.ENDPOINT} answers; {kept}", "ok")
    except Exception as error:  # of whichever HTTP library the hub uses
        silence = f"{constants.ENDPOINT} does not answer ({type(error).__name__})"
        advice = "use model.weights=FILE or model.pretrained=false"
        yield Row("weights", f"{silence}; {kept}. Without it {advice}", "missing")


def aws() -> Iterator[Row]:
    """Who AWS takes this user for."""
    try:
        import boto3
        from botocore.config import Config
    except ImportError:
        yield Row("AWS", "not looked at: boto3 is not installed, see s3")
        return
    from imgcls.aws.refusals import explain

    quick = Config(connect_timeout=PATIENCE, read_timeout=PATIENCE, retries={"total_max_attempts": 1})
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
    while not folder.exists():
        folder = folder.parent
    usage = shutil.disk_usage(folder)
    return f"{usage.free / GIB:.1f} of {usage.total / GIB:.1f} GiB free"


def _folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []


def _size(folder: Path) -> int:
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file())


def table(sections: dict[str, list[Row]]) -> str:
    """The sections as text for a terminal."""
    rows = [row for members in sections.values() for row in members]
    name, mark = (max((len(getattr(row, field)) for row in rows), default=0) for field in ("name", "mark"))
    lines = [f"imgcls {__version__} in {Path(__file__).parent}"]
    for title, members in sections.items():
        lines += ["", title, *(f"  {row.name:{name}}  {row.mark:{mark}}  {row.text}".rstrip() for row in members)]
    return "\n".join(lines)


def main() -> None:
    """The command line."""
    sys.exit(guarded(lambda: _command(sys.argv[1:])))


def _command(arguments: Sequence[str]) -> None:
    read_options(arguments, {}, usage=__doc__ or "")
    print(table(examine()))


if __name__ == "__main__":
    main()
