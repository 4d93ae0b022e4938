"""`python -m imgcls.embed run=DIR IMAGES…`: write the features of images, for searches, clusters and other models.

usage: python -m imgcls.embed run=DIR [output=features.npy|FILE.parquet] IMAGES…

run= is a run folder, or the folder of a portable model; IMAGES are files or folders (all images in them). The features
are what the model's head classifies, one row per image: FILE.npy is float32 (images, features), with the names of the
files in FILE.csv; FILE.parquet has the columns file and features. An image that cannot be read is named on stderr and
left out, and the exit code is 1. Several processes, started by torchrun or srun, take a share of the images each, and
the last one that is done writes FILE; their exit code is 0. Needs torch.
"""

from __future__ import annotations

import sys
from collections.abc import Generator, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from imgcls.cli import Option, read_options, run_command
from imgcls.data.names import picture_name
from imgcls.errors import UserError
from imgcls.predict import UnreadableError, model_state, picture_files
from imgcls.system.checks import check_value
from imgcls.system.extras import need
from imgcls.system.files import atomic_path
from imgcls.system.shares import Share, join_if_last
from imgcls.system.tables import as_csv
from imgcls.system.text import printable

if TYPE_CHECKING:
    import numpy as np

    from imgcls.portable import PortableModel

    Parts = Generator[tuple[list[str], np.ndarray], None, None]

SUFFIXES = (".npy", ".parquet")
OPTIONS = {"run": Option(), "output": Option("features.npy")}


def embed(run: str, files: Sequence[str], output: Path) -> list[str]:
    """Write the features of `files` by the model of `run` to `output`; return the names of those that are unreadable.

    One of several processes computes its share, returns what is unreadable in it, and the last one writes `output`.

    Args:
        run: a run folder, or the folder of a portable model.
        files: paths of images.
        output: FILE.npy, to which FILE.csv with the names is added, or FILE.parquet; both whole or absent.

    Raises:
        UserError: `output` is neither, there is no model, or the file cannot be written.
    """
    check_value("output", output.name, _table_suffix)
    if output.suffix == ".parquet":
        need("pyarrow", "parquet", f"output={output}")
    from imgcls import portable
    from imgcls.runs.run import find_model

    share, write = Share.of_this_process(), _write_parquet if output.suffix == ".parquet" else _write_npy
    parts = share.parts(output, [model_state(run), files])
    part = parts[share.rank] if share.count > 1 else output
    unreadable: list[str] = []
    if share.count == 1 or not part.exists():
        model = portable.load(find_model(run), "torch", device=None)
        with closing(compute_features(model, share.of(files), unreadable)) as features:
            write(part, model.network.num_features, features)
    if share.count > 1 and join_if_last(parts, lambda: _join(output, parts)):
        for each in parts:
            each.with_suffix(".csv").unlink(missing_ok=True)
    return unreadable


def _join(output: Path, parts: Sequence[Path]) -> None:
    """Write the features in `parts` to `output`, one after the other."""
    if output.suffix == ".parquet":
        parquet = need("pyarrow.parquet", "parquet", f"output={output}")
        files = [parquet.ParquetFile(part) for part in parts]
        with atomic_path(output) as temporary, parquet.ParquetWriter(temporary, files[0].schema_arrow) as writer:
            for batch in (batch for file in files for batch in file.iter_batches()):
                writer.write_batch(batch)
        return
    import numpy as np

    from imgcls.runs.reading import read_table

    def rows() -> Parts:
        for part in parts:
            names = [row["file"] for row in read_table(part.with_suffix(".csv"))]
            features = np.load(part, mmap_mode="r")
            for start in range(0, len(names), 4096):
                yield names[start : start + 4096], features[start : start + 4096]

    _write_npy(output, np.load(parts[0], mmap_mode="r").shape[1], rows())


def compute_features(model: PortableModel, files: Sequence[str], unreadable: list[str]) -> Parts:
    """The features of the readable `files`, in their order, in batches of names and float32 (n, F).

    The other files are named on stderr, and added to `unreadable`.
    """
    import numpy as np

    from imgcls.portable.reading import BATCH, read_batches
    from imgcls.system.bars import with_bar

    with closing(read_batches(files, model.preprocessing)) as batches:
        for batch, pixels in with_bar(batches, -(-len(files) // BATCH), "Features"):
            good = [(file, image) for file, image in zip(batch, pixels, strict=True) if not isinstance(image, str)]
            for file, image in zip(batch, pixels, strict=True):
                if isinstance(image, str):
                    print(printable(f"{picture_name(file)}: {image}"), file=sys.stderr)
                    unreadable.append(file)
            if good:
                names, readable = zip(*good, strict=True)
                yield [picture_name(name) for name in names], model.features(np.stack(readable))


def _write_npy(output: Path, width: int, parts: Parts) -> None:
    import numpy as np

    names: list[str] = []

    def header(file: object) -> None:
        shape = {"descr": "<f4", "fortran_order": False, "shape": (len(names), width)}
        np.lib.format.write_array_header_1_0(file, shape)  # type: ignore[arg-type]

    with atomic_path(output) as temporary, temporary.open("wb") as file:
        header(file)
        for batch, features in parts:
            names += batch
            file.write(np.ascontiguousarray(features, dtype="<f4").data)
        file.seek(0)
        header(file)  # which leaves room for any number of rows
        with atomic_path(output.with_suffix(".csv")) as table:
            table.write_text(as_csv([{"file": name} for name in names]) if names else "file\n", encoding="utf-8")


def _write_parquet(output: Path, width: int, parts: Parts) -> None:
    pyarrow, parquet = (need(name, "parquet", f"output={output}") for name in ("pyarrow", "pyarrow.parquet"))
    schema = pyarrow.schema([("file", pyarrow.string()), ("features", pyarrow.list_(pyarrow.float32(), width))])
    with atomic_path(output) as temporary, parquet.ParquetWriter(temporary, schema) as writer:
        for names, features in parts:
            columns = [
                pyarrow.array(names),
                pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(features.reshape(-1)), width),
            ]
            writer.write_batch(pyarrow.record_batch(columns, schema=schema))


def _table_suffix(name: str) -> str | None:
    return None if name.endswith(SUFFIXES) else "must end with .npy or .parquet."


def _command(arguments: Sequence[str]) -> None:
    options, _, paths = read_options(arguments, OPTIONS, usage=__doc__ or "", others=None)
    if options["run"] is None or not paths:
        raise UserError("Give a run folder and images: python -m imgcls.embed run=DIR IMAGES…")
    output = Path(options["output"]).expanduser()
    files = [str(file) for file in picture_files(paths)]
    unreadable = embed(options["run"], files, output)
    if (share := Share.of_this_process()).count > 1:
        print(f"{output}: share {share.rank + 1} of {share.count} is done; {len(unreadable)} images are unreadable.")
        return  # an exit code would let torchrun end the others
    print(f"{output}  the features of {len(files) - len(unreadable):,} images")
    if unreadable:
        raise UnreadableError(f"{len(unreadable):,} of {len(files):,} images could not be read.")


def main() -> None:
    """Run the command line."""
    run_command(lambda: _command(sys.argv[1:]))


if __name__ == "__main__":
    main()
