"""`model.tar.gz` for SageMaker's PyTorch inference container: the model's files, and the code that serves it.

The newest of these containers has PyTorch 2.6 on Python 3.12 with numpy, Pillow and torchvision, and may have no
network when it loads a model. So `code/` holds imgcls and timm, both pure Python: nothing has to be installed.
"""

from __future__ import annotations

import gzip
import importlib.util
import io
import tarfile
from collections.abc import Iterator
from pathlib import Path

from imgcls.errors import UserError
from imgcls.portable import CARD, DESCRIPTION, NOVELTY, ONNX, WEIGHTS
from imgcls.portable.certificate import CERTIFICATE, check_certificate
from imgcls.serve.predictor import model_folder
from imgcls.system.files import atomic_path

ENTRY_POINT = '''"""The handlers that SageMaker's PyTorch inference container calls."""

from imgcls.serve.inference import input_fn, model_fn, output_fn, predict_fn

__all__ = ["input_fn", "model_fn", "output_fn", "predict_fn"]
'''
PACKAGES = ("imgcls", "timm")
LICENCES = ("LICENSE", "LICENSE.txt", "LICENSE.md")


def write_archive(model: str | Path, target: Path) -> Path:
    """Write a portable model as `target`, a `model.tar.gz`, and return it; the same model gives the same bytes.

    Args:
        model: the folder of a run or of a portable model.
        target: the file to write.

    Raises:
        UserError: there is no model, timm is not installed, or the model's certificate does not hold.
    """
    folder = model_folder(model)
    check_certificate(folder)
    with (
        atomic_path(target) as temporary,
        temporary.open("wb") as raw,
        # without a name and a time, which would differ between exports
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
    for name in (DESCRIPTION, WEIGHTS, NOVELTY, ONNX, CARD, CERTIFICATE):
        if (folder / name).is_file():
            yield name, (folder / name).read_bytes()
    for name, content in code_files():
        yield f"code/{name}", content


def code_files() -> Iterator[tuple[str, bytes]]:
    """Name and content of each file in `code/`, which serves a portable model in a container without imgcls."""
    yield "inference.py", ENTRY_POINT.encode()
    for package in PACKAGES:
        root = _package(package)
        for file in sorted(root.rglob("*.py")):
            yield f"{package}/{file.relative_to(root).as_posix()}", file.read_bytes()
        if licence := _licence(package, root):
            yield f"{package}/{licence.name}", licence.read_bytes()


def _package(name: str) -> Path:
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise UserError(f"format=sagemaker packs {name}, which is not installed: pip install {name}")
    return Path(spec.origin).parent


def _licence(name: str, root: Path) -> Path | None:
    """The licence beside the sources, in the checkout or in the installed distribution's metadata."""
    folders = [root, root.parent] if (root.parent / "pyproject.toml").is_file() else [root]
    for pattern in (f"{name}-*.dist-info", f"{name}-*.dist-info/licenses"):
        folders += sorted(root.parent.glob(pattern))
    return next((folder / file for folder in folders for file in LICENCES if (folder / file).is_file()), None)
