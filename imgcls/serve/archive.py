"""`model.tar.gz` for SageMaker's PyTorch inference container: the model's files, and in `code/` all that it takes.

The newest of these containers has PyTorch 2.6 on Python 3.12 with numpy, Pillow and torchvision, and may have no
network when it loads a model. So imgcls and timm, both Python alone, travel in `code/`: nothing has to be installed.
"""

from __future__ import annotations

import gzip
import importlib.util
import io
import tarfile
from collections.abc import Iterator
from pathlib import Path

from imgcls.errors import UserError
from imgcls.portable import CARD, DESCRIPTION, ONNX, WEIGHTS
from imgcls.serve.predictor import model_folder
from imgcls.system.files import atomic_path

ENTRY = '''"""What SageMaker's PyTorch inference container calls."""

from imgcls.serve.inference import input_fn, model_fn, output_fn, predict_fn

__all__ = ["input_fn", "model_fn", "output_fn", "predict_fn"]
'''
CARRIED = ("imgcls", "timm")
LICENCES = ("LICENSE", "LICENSE.txt", "LICENSE.md")


def write_archive(model: str | Path, target: Path) -> Path:
    """Write `target`, a `model.tar.gz`, from a portable model; the same model gives the same bytes.

    Args:
        model: a run's folder, or that of a portable model.
        target: the file.

    Returns:
        `target`.

    Raises:
        UserError: there is no model, or timm is not installed.
    """
    folder = model_folder(model)
    with (
        atomic_path(target) as temporary,
        temporary.open("wb") as raw,
        # without a name and a time, which would differ from export to export
        gzip.GzipFile(filename="", mode="wb", fileobj=raw, mtime=0, compresslevel=6) as packed,
        tarfile.open(fileobj=packed, mode="w") as archive,
    ):
        for name, content in archive_files(folder):
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(content), 0o644
            archive.addfile(entry, io.BytesIO(content))
    return target


def archive_files(folder: Path) -> Iterator[tuple[str, bytes]]:
    """Name and content of each file in the archive of the portable model in `folder`."""
    for name in (DESCRIPTION, WEIGHTS, ONNX, CARD):
        if (folder / name).is_file():
            yield name, (folder / name).read_bytes()
    for name, content in code_files():
        yield f"code/{name}", content


def code_files() -> Iterator[tuple[str, bytes]]:
    """Name and content of each file of `code/`, by which a container without imgcls serves a portable model."""
    yield "inference.py", ENTRY.encode()
    for package in CARRIED:
        root = _package(package)
        for file in sorted(root.rglob("*.py")):
            yield f"{package}/{file.relative_to(root).as_posix()}", file.read_bytes()
        for file in _licences(package, root):
            yield f"{package}/{file.name}", file.read_bytes()
            break


def _package(name: str) -> Path:
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise UserError(f"format=sagemaker carries {name}, which is not installed: pip install {name}")
    return Path(spec.origin).parent


def _licences(name: str, root: Path) -> Iterator[Path]:
    """The licence, beside the sources or in what the installer left of the distribution."""
    places = [
        root,
        root.parent,
        *sorted(root.parent.glob(f"{name}-*.dist-info")),
        *sorted(root.parent.glob(f"{name}-*.dist-info/licenses")),
    ]
    for place in places:
        for licence in LICENCES:
            if (place / licence).is_file() and (place != root.parent or (place / "pyproject.toml").is_file()):
                yield place / licence
