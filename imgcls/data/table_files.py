"""Read the columns of a table: CSV, TSV, JSON lines, Parquet."""

from __future__ import annotations

import csv
import json
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from imgcls.aws.s3 import is_remote
from imgcls.data.embedded import EmbeddedImages
from imgcls.errors import UserError
from imgcls.images.paths import file_state
from imgcls.system.extras import need
from imgcls.system.tables import cell_text

Choose = Callable[[list[str]], Sequence[str]]
"""Takes the names of the columns and returns those to read."""

IMAGES_AT_A_TIME = 64
"""Read from a Parquet file."""
CELLS_LOOKED_AT = 10_000
"""By which a column of a CSV file with many equal texts is recognised."""


@dataclass(frozen=True)
class Columns:
    """Columns of a table, each of which has a value for each row; a missing value is the empty text."""

    values: dict[str, list[Any]]
    """Texts, or of JSON lines and Parquet also lists and numbers."""
    lines: Sequence[int]
    """The line of each row in the file, or its number in a Parquet file, counted from 1."""
    unit: str = "line"
    """What `lines` count: `line` or `row`."""
    embedded: dict[str, EmbeddedImages] = field(default_factory=dict)
    """Columns that have images instead of values."""


def table_root(root: str | Path | None, table: str | Path) -> str | Path:
    """`root`, or the folder or address that has the `table`."""
    if root is not None:
        return root
    return str(table).rpartition("/")[0] if is_remote(table) else Path(table).expanduser().parent


def find_table(table: str, root: Path) -> Path:
    """The file of `table`: as it is, or in `root`, where the end of its path is enough, since data sets are moved.

    Raises UserError if there is none.
    """
    path = Path(table).expanduser()
    parts = [part for part in path.parts if part != path.anchor]
    candidates = [path, *(root.joinpath(*parts[start:]) for start in range(len(parts)))]
    for candidate in candidates[1 if is_remote(table) else 0 :]:
        if candidate.is_file():
            return candidate
    raise UserError(f"data.table={table}: no such file, neither here nor in {root}.")


def read_columns(file: Path, choose: Choose) -> Columns:
    """The columns of `file` that `choose` selects. Raises UserError, with the line, if it cannot be read."""
    reader = {".jsonl": _read_json, ".ndjson": _read_json, ".parquet": _read_parquet}.get(
        file.suffix.lower(), _read_csv
    )
    try:
        return reader(file, choose)
    except FileNotFoundError:
        raise UserError(f"data.table={file}: no such file.") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is not encoded as UTF-8 ({error.reason}). Save it as CSV UTF-8.") from error
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror or error}.") from error


def _read_csv(file: Path, choose: Choose) -> Columns:
    with file.open(newline="", encoding="utf-8-sig") as opened:
        first = opened.readline()
        opened.seek(0)
        reader = csv.reader(opened, delimiter=_delimiter(file, first))
        try:
            return _rows_of_csv(file, reader, choose)
        except csv.Error as error:
            raise UserError(f"{file}, line {reader.line_num}: {error}.") from error


def _delimiter(file: Path, header: str) -> str:
    """The most frequent delimiter in the header: spreadsheets write semicolons where the comma is in numbers."""
    if file.suffix.lower() == ".tsv":
        return "\t"
    return max(",;\t", key=header.count)


def _rows_of_csv(file: Path, reader: Any, choose: Choose) -> Columns:
    header = [name.strip() for name in next(reader, [])]
    if not any(header):
        raise UserError(f"{file} is empty. Its first line must name the columns, such as file,label.")
    chosen = choose(header)
    columns: dict[str, list[str]] = {name: [] for name in chosen}
    lines, width = array("q"), len(header)
    adders = [(header.index(name), cells.append) for name, cells in columns.items()]
    for row in reader:
        if len(row) != width:
            if not any(row):
                continue
            raise UserError(f"{file}, line {reader.line_num}: {len(row)} cells, but the first line has {width}.")
        lines.append(reader.line_num)
        for place, add in adders:
            add(row[place])
    return Columns({name: _texts(cells) for name, cells in columns.items()}, lines)


def _texts(cells: list[str]) -> list[str]:
    """What was written as `cells`, without blanks around it; equal texts are one object if most are not unique."""
    first = cells[:CELLS_LOOKED_AT]
    if len(set(first)) > len(first) // 2:
        return list(map(cell_text, map(str.strip, cells)))
    texts = {cell: cell_text(cell.strip()) for cell in set(cells)}
    return list(map(texts.__getitem__, cells))


def _read_json(file: Path, choose: Choose) -> Columns:
    values: dict[str, list[Any]] = {}
    lines = array("q")
    for number, row in _json_rows(file):
        if not values:
            values = {name: [] for name in choose(list(row))}
        lines.append(number)
        for name, cells in values.items():
            value = row.get(name, "")
            cells.append("" if value is None else value)
    if not lines:
        raise UserError(f"{file} is empty.")
    return Columns(values, lines)


def _json_rows(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with file.open(encoding="utf-8-sig") as opened:
        for number, line in enumerate(opened, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise UserError(f"{file}, line {number} is not JSON: {error}.") from error
            if not isinstance(row, dict):
                raise UserError(f'{file}, line {number} is not an object such as {{"file": "a.jpg", "label": "cat"}}.')
            yield number, row


def _read_parquet(file: Path, choose: Choose) -> Columns:
    parquet = need("pyarrow.parquet", "parquet", f"data.table={file}")
    try:
        opened = parquet.ParquetFile(file)
        schema = opened.schema_arrow
        chosen = list(choose(schema.names))
        held = [name for name in chosen if _holds_images(str(schema.field(name).type))]
        table = opened.read(columns=[name for name in chosen if name not in held])
    except (ValueError, NotImplementedError) as error:  # pyarrow.lib.ArrowInvalid is a ValueError
        raise UserError(f"{file} is not a readable Parquet file: {' '.join(str(error).split())}") from error
    names = _class_names((schema.metadata or {}).get(b"huggingface", b""))
    values = {
        name: ["" if cell is None else _named(cell, names.get(name)) for cell in table[name].to_pylist()]
        for name in table.column_names
    }

    def read(column: str) -> Iterator[Any]:
        for batch in parquet.ParquetFile(file).iter_batches(IMAGES_AT_A_TIME, columns=[column]):
            yield from batch.column(0).to_pylist()

    key = [str(file.resolve()), file_state(file)]
    embedded = {name: EmbeddedImages([*key, name], partial(read, name)) for name in held}
    return Columns(values, range(1, opened.metadata.num_rows + 1), "row", embedded)


def _holds_images(kind: str) -> bool:
    """Whether a column of this Arrow type has the bytes of images: binary, or the struct of `datasets`."""
    return kind in ("binary", "large_binary") or (kind.startswith("struct<") and "bytes: " in kind)


def _class_names(metadata: bytes) -> dict[str, list[str]]:
    """The names of the classes by column, of a table that `datasets` has written."""
    try:
        features = json.loads(metadata)["info"]["features"]
        found = {
            name: feature.get("names") or feature["feature"]["names"]
            for name, feature in features.items()
            if "names" in feature or "names" in feature.get("feature", {})
        }
        return {name: names for name, names in found.items() if all(isinstance(each, str) for each in names)}
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}


def _named(cell: Any, names: Sequence[str] | None) -> Any:
    """The name of the class with this number, or of each in a list; other cells as they are."""
    if names is None:
        return cell
    if isinstance(cell, list):
        return [_named(item, names) for item in cell]
    return names[cell] if isinstance(cell, int) and 0 <= cell < len(names) else ""
