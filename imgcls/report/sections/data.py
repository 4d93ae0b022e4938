"""The images of each split and class, files left out, duplicates and the augmentation."""

from __future__ import annotations

from imgcls.report.blocks import Block, Blocks, Pictures, Table, Text
from imgcls.report.run_data import RunData
from imgcls.report.sections.section import Section

MAX_ROWS = 20  # of the tables of files and duplicates
MAX_OPEN_ROWS = 15  # of a table of classes that is not folded


def _make(run: RunData) -> Blocks:
    stored, bad_files = run.image_data("counts"), run.table("bad_files.csv")
    duplicates, augmented = run.image_data("duplicates"), run.image_data("augmented").get("pictures", [])
    splits = stored.get("splits")
    if not (splits or bad_files or augmented):
        return []
    text = " ".join([*stored.get("notes", []), duplicates.get("note", "")]).strip()
    blocks: list[Block] = [Text(text)] if text else []
    if splits:
        rows = [
            [name, *(str(counts[index]) for counts in splits.values())] for index, name in enumerate(stored["classes"])
        ]
        total = ["all", *(str(sum(counts)) for counts in splits.values())]
        fold = f"All {len(rows)} classes" if len(rows) > MAX_OPEN_ROWS else ""
        blocks.append(Table(["images of", *splits], rows, range(1, len(total)), total, fold=fold))
    if bad_files:
        title = f"{len(bad_files):,} files were left out" if bad_files[1:] else "One file was left out"
        blocks.append(Table.of(bad_files, MAX_ROWS, "bad_files.csv", title))
    if duplicates.get("rows"):
        count = duplicates["found"]
        title = f"{count} images are in two splits" if count > 1 else "One image is in two splits"
        blocks.append(Table.of(duplicates["rows"], MAX_ROWS, "report_data/duplicates.json", title, count))
    if augmented:
        shown = [{**row, "predicted": row["label"], "file": "", "note": ""} for row in augmented]
        blocks.append(Pictures(shown, title="Training images after augmentation"))
    return blocks


SECTION = Section("Data", _make)
