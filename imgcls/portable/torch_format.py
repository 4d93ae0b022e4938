"""The format `torch`: a graph of `torch.export`, for what runs or compiles one (C++, ExecuTorch, AOTInductor)."""

from __future__ import annotations

import importlib.util
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from imgcls.errors import UserError, first_line
from imgcls.portable.engines import as_columns
from imgcls.portable.formats import Converter, Source
from imgcls.system.allocation import keep_freed_memory

FILE = "model.pt2"


class TorchFormat:
    """`model.pt2`, whose graph takes normalised float32 (N, 3, S, S) images and returns what `Exported` does."""

    precisions = ("fp32",)
    runs_code = True  # torch reads pickles and evaluates expressions in such a file

    def check(self) -> None:
        if importlib.util.find_spec("torch") is None:  # as in a container that only serves
            raise UserError("format=torch needs torch: pip install torch")

    def converter(self, source: Source, precision: str) -> Converter:
        return _Writer(source)

    def engine(self, folder: Path, threads: int | None = None) -> ProgramEngine:
        self.check()
        return ProgramEngine(folder / FILE)


class _Writer:
    layers: Sequence[str] = ()

    def __init__(self, source: Source) -> None:
        self._source = source

    def write(self, folder: Path, keep: Sequence[str] = ()) -> None:
        import torch

        shape = self._source.preprocessing.channels, *self._source.preprocessing.shape
        batch = torch.export.Dim("batch", min=1)
        with torch.no_grad():
            program = torch.export.export(
                self._source.exported, (torch.zeros(2, *shape),), dynamic_shapes=({0: batch},)
            )
        content = io.BytesIO()
        torch.export.save(program, content)
        (folder / FILE).write_bytes(content.getbuffer())  # torch's own writer ends the process where the disk is full


class ProgramEngine:
    """Runs an exported program with torch, on the CPU."""

    def __init__(self, file: Path) -> None:
        import torch

        keep_freed_memory()
        try:
            self._module = torch.export.load(file).module()
        except Exception as error:  # torch's reader raises many
            raise UserError(f"{file} cannot be read: {first_line(error)}") from error
        self.name = f"torch.export on {torch.get_num_threads()} threads"

    def outputs(self, images: np.ndarray) -> np.ndarray:
        import torch

        with torch.inference_mode():
            return as_columns(self._module(torch.from_numpy(images)))
