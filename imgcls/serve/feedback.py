"""Corrections by the users of the page: images with their right labels, as a table that `data=table` reads."""

from __future__ import annotations

import csv
import hashlib
import os
import shutil
import threading
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from imgcls.errors import UserError
from imgcls.images.decoding import BadPicture, decode
from imgcls.serve.predictor import MAX_PIXELS
from imgcls.serve.refusals import Refusal
from imgcls.system.files import atomic_write_bytes, atomic_write_text
from imgcls.system.tables import as_csv, cell_text

TABLE, IMAGES = "labels.csv", "images"
COLUMNS = ("file", "label", "predicted", "time")
MAX_IMAGES = 10_000
MAX_LABEL = 200
FREE_BYTES = 1_000_000_000
"""Of the disk, which corrections never take."""
SEPARATOR = ";"


class Feedback:
    """The corrections in a folder: `images/` and `labels.csv` with the columns file, label, predicted, time.

    The last correction of an image counts. At most MAX_IMAGES are kept. Raises UserError if it cannot be written to.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock = threading.Lock()
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"feedback={folder}: {error.strerror or error}.") from error
        if not os.access(folder, os.W_OK):
            raise UserError(f"feedback={folder}: cannot be written to.")

    def add(self, content: bytes, labels: Sequence[str], predicted: str = "") -> int:
        """Keep an image with its right labels, none if it has none; return how many images there are.

        Raises:
            Refusal: 400 for something else than an image or a label, 507 if there is no room.
        """
        labels = [self._checked(label) for label in labels]
        try:
            _, kind = decode(content, MAX_PIXELS)
        except BadPicture as error:
            raise Refusal(400, f"The image cannot be used: {error.reason}.") from error
        name = f"{IMAGES}/{hashlib.sha256(content).hexdigest()[:20]}.{(kind or 'image').lower()}"
        row = {
            "file": name,
            "label": SEPARATOR.join(labels),
            "predicted": self._checked(predicted) if predicted else "",
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        with self._lock:
            rows = {entry["file"]: entry for entry in self._rows()} | {name: row}
            if len(rows) > MAX_IMAGES or shutil.disk_usage(self.folder).free < FREE_BYTES:
                raise Refusal(507, "There is no room for more corrections on this server.")
            try:
                atomic_write_bytes(self.folder / name, content)
                atomic_write_text(self.folder / TABLE, as_csv(list(rows.values()), COLUMNS))
            except UserError as error:
                raise Refusal(507, "The correction could not be written.") from error
        return len(rows)

    def _rows(self) -> list[dict[str, str]]:
        file = self.folder / TABLE
        if not file.is_file():
            return []
        with file.open(encoding="utf-8", newline="") as text:
            return [{name: cell_text(cell or "") for name, cell in row.items()} for row in csv.DictReader(text)]

    @staticmethod
    def _checked(label: str) -> str:
        label = label.strip()
        if not label or len(label) > MAX_LABEL or not label.isprintable():
            raise Refusal(400, f"A label has 1 to {MAX_LABEL} printable characters.")
        return label
