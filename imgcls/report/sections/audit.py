"""Labels that are probably wrong, and why the model errs: what `python -m imgcls.audit` has found."""

from __future__ import annotations

from imgcls.report.blocks import Block, Blocks, Pictures, Table, Text
from imgcls.report.run_data import RunData
from imgcls.report.sections.section import Section


def _make(run: RunData) -> Blocks:
    found = run.image_data("audit")
    if not found:
        return []
    wrong, copies, poor = found["wrong"], found["copies"], found["poor"]
    blocks: list[Block] = [
        Text(
            f"About {wrong['found']:,} of {found['images']:,} labels are wrong, {copies['found']:,} images show the "
            f"same as an earlier one, and {poor['found']:,} are poor. audit.csv has all images, the least likely "
            "labels first, and data=table reads it."
        ),
        *_errors(found["errors"]),
    ]
    if wrong["pictures"]:
        blocks.append(Pictures(wrong["pictures"], title="The least likely labels, and the likeliest classes"))
    if copies["rows"]:
        blocks.append(Table.of(copies["rows"], len(copies["rows"]), "audit.csv", "Copies", copies["found"]))
    if poor["pictures"]:
        blocks.append(Pictures(poor["pictures"], title="Poor images"))
    for group in found["hidden"]:
        title = f"{group['class']} may be two classes ({group['share']:.0%} and {1 - group['share']:.0%} of its images)"
        blocks.append(Pictures([picture for part in group["groups"] for picture in part], title=title))
    return blocks


def _errors(errors: dict[str, object] | None) -> Blocks:
    if not errors or not errors["causes"]:
        return []
    rows = [[row["cause"], str(row["errors"]), row["worth"]] for row in errors["causes"]]  # type: ignore[attr-defined]
    note = (
        "Each gain is measured on the validation images with a linear head on stored features "
        f"({errors['head_accuracy']:.1%} of them correct), solved again with these images changed, and has its 95 % "
        "interval. Corrected labels count as right."
    )
    return [Table(["cause of the error", "errors", "what correcting it gains"], rows, [1], title="Errors", note=note)]


SECTION = Section("Audit", _make)
