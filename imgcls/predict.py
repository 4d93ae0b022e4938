"""`python -m imgcls.predict run=DIR PICTURES…`: classify images with a finished run.

usage: python -m imgcls.predict run=DIR [top_k=5|coverage=0.95] [format=table|csv|jsonl] [engine=auto|onnx|torch]
                                [output=FILE] [views=one|flip|flip_shift|where_unsure] PICTURES…
       python -m imgcls.predict endpoint=URL-or-SageMaker-name [top_k=5|coverage=0.95] [format=table|csv|jsonl]
                                [output=FILE] PICTURES…

run= is a run folder, or the folder of a portable model. PICTURES are files or folders (all images in them). An image
that cannot be read is named on stderr, the others are classified, and the exit code is 1. `endpoint=` uses a server of
`imgcls.serve`, or a SageMaker endpoint. `engine=auto` is ONNX Runtime where it is installed and the run has a
`model.onnx`, else torch. `views` selects the views of each image whose features are averaged, see model.views; it needs
torch. `coverage=0.95` prints, instead of the `top_k` likeliest classes, the smallest set of classes that holds the true
one in 95 % of the cases.

`output=FILE` writes a JSON line per image to FILE instead, with an `error` for one that cannot be read. If the command
is killed, run it again: it continues after the last line. FILE.csv, or format=csv, is a table for a spreadsheet, with
the columns file, class, probability, and those of the next classes; they are empty for an image that cannot be read.
Where images can have several labels, the columns are file, label (all of them, with ; in between), and the probability
of each label. Several processes, started by torchrun or srun, classify a share of the images each, and the last one
that is done writes FILE.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imgcls.cli import Option, read_options, run_command
from imgcls.data.names import picture_name
from imgcls.errors import UserError
from imgcls.models.choices import VIEWS
from imgcls.portable.engines import ENGINES
from imgcls.portable.predictions import novelty_entries
from imgcls.system.checks import choice, share, whole
from imgcls.system.files import atomic_path, atomic_write_text, explain_os_errors, take_lock
from imgcls.system.shares import Share, join_if_last
from imgcls.system.tables import join_labels, table_as_csv
from imgcls.system.text import printable

if TYPE_CHECKING:
    import numpy as np

    from imgcls.serve.client import Client

BATCH = 32
OPTIONS = {
    "run": Option(),
    "endpoint": Option(),
    "top_k": Option(None, whole(1), int),
    "format": Option(None, choice("table", "csv", "jsonl")),
    "engine": Option("auto", choice(*ENGINES)),
    "output": Option(),
    "views": Option(None, choice(*VIEWS)),
    "coverage": Option(None, share, float),
}

TOP_K = 5
Classes = list[tuple[str, float]]
Answers = Iterator[tuple[str, Classes | str]]
"""Files with their likeliest classes, or the reason why there are none."""


def predict(arguments: Sequence[str]) -> None:
    """Print the likeliest classes of each image."""
    options, _, paths = read_options(arguments, OPTIONS, usage=__doc__ or "", others=None)
    if (options["run"] is None) == (options["endpoint"] is None):
        raise UserError(
            "Give the run folder: python -m imgcls.predict run=DIR PICTURES… "
            "Or ask a server: python -m imgcls.predict endpoint=URL PICTURES…"
        )
    if not paths:
        raise UserError("Give image files or folders: python -m imgcls.predict run=DIR PICTURES…")
    if options["views"] is not None and options["endpoint"] is not None:
        raise UserError("views= is for run=DIR: an endpoint's model has views of its own.")
    if options["coverage"] is not None and options["top_k"] is not None:
        raise UserError("Give top_k= or coverage=, not both.")
    if options["coverage"] is not None and options["format"] == "csv" and options["output"] is None:
        raise UserError("format=csv with coverage= has as many columns as the largest set: give output=FILE.csv")
    share = Share.of_this_process()
    if share.count > 1 and options["output"] is None:
        raise UserError(f"{share.count} processes write their answers into one file: give output=FILE.")
    files = [str(file) for file in picture_files(paths)]

    def classify(left: Sequence[str]) -> Answers:
        if options["endpoint"] is not None:
            from imgcls.serve.client import Client

            return _ask(Client(options["endpoint"]), left, options["top_k"], options["coverage"])
        answer = options["top_k"], options["coverage"]
        return _compute(options["run"], options["engine"], options["views"], left, *answer)

    if options["output"] is not None:
        output = Path(options["output"]).expanduser()
        key = [options["run"] and model_state(options["run"]), options["endpoint"], options["engine"], options["top_k"]]
        key += [options[name] for name in ("views", "coverage") if options[name] is not None]
        as_table = "csv" in (options["format"], output.suffix.lower().removeprefix("."))
        as_table = as_table and options["format"] != "jsonl"
        unreadable = _write(output, key, files, classify, as_table=as_table, share=share)
    else:
        unreadable = _print(files, classify(files), options["format"] or "table")
    if unreadable:
        raise UnreadableError(f"{unreadable:,} of {len(files):,} images could not be read.")


def _print(files: Sequence[str], answers: Answers, form: str) -> int:
    """Print the answers, those without classes on stderr; return how many these are."""
    show = _as_json if form == "jsonl" else _as_row(max(map(len, files), default=0))
    head: list[str] = []
    unreadable = shown = 0
    for file, answer in answers:
        if isinstance(answer, str):
            unreadable += 1
            print(printable(f"{picture_name(file)}: {answer}"), file=sys.stderr)
        else:
            if form == "csv" and not shown:
                head = _csv_head(_as_content(file, answer))
                print(printable(_csv_line(head)))
            shown += 1
            print(
                printable(_csv_line(_csv_row(_as_content(file, answer), head)) if form == "csv" else show(file, answer))
            )
    return unreadable


def _write(
    output: Path,
    key: Sequence[object],
    files: Sequence[str],
    classify: Callable[[Sequence[str]], Answers],
    *,
    as_table: bool,
    share: Share,
) -> int:
    """Write a JSON line per image, or a row `as_table`, of this process's `share`; the last process joins all shares.

    Return how many images of `output` could not be read; 0 where other processes are not done yet. A command with the
    same `key` and `files` that was killed is continued.
    """
    parts = share.parts(output, [*key, files])
    part, own = parts[share.rank], share.of(files)
    unreadable = 0

    def join() -> None:
        nonlocal unreadable
        for each in parts:
            with each.open("rb") as lines:
                unreadable += sum("error" in json.loads(line) for line in lines)
        if as_table:
            atomic_write_text(output, _table_of(parts))
            return
        with atomic_path(output) as temporary, temporary.open("wb") as joined:
            for each in parts:
                with each.open("rb") as lines:
                    shutil.copyfileobj(lines, joined)

    with explain_os_errors(output):
        if not part.exists():
            _write_lines(output, part, own, classify)
        if not join_if_last(parts, join):
            print(f"{output}: share {share.rank + 1} of {share.count} is done, {len(own):,} images.", file=sys.stderr)
    return unreadable


def _write_lines(output: Path, part: Path, files: Sequence[str], classify: Callable[[Sequence[str]], Answers]) -> None:
    """Write a JSON line per image to `part`, after those that a killed command has written beside it."""
    partial = part.with_name(f"{part.name}.partial")
    partial.parent.mkdir(parents=True, exist_ok=True)
    with partial.open("a+b") as file:
        if not take_lock(file, wait=False):
            raise UserError(f"{output} is being written by another process.")
        file.seek(0)
        done = end = 0
        for line in file:
            if not line.endswith(b"\n"):
                break  # of a kill
            done, end = done + 1, end + len(line)
        file.truncate(end)
        if done:
            print(f"{done:,} of {len(files):,} images are done already.", file=sys.stderr)
        for place, answer in classify(files[done:]) if done < len(files) else ():
            file.write(f"{_as_json(place, answer)}\n".encode())
            file.flush()
        os.fsync(file.fileno())
        partial.replace(part)


def _table_of(parts: Sequence[Path]) -> str:
    """The answers in files of JSON lines as CSV."""
    contents = []
    for part in parts:
        with part.open(encoding="utf-8") as lines:
            contents += [json.loads(line) for line in lines]
    head = _csv_head(max(contents, key=lambda content: len(content.get("classes", ())), default={}))
    return table_as_csv([head, *(_csv_row(content, head) for content in contents)])


def model_state(run: str) -> list[object]:
    """What changes when the run of this folder has another model."""
    from imgcls.runs.run import find_model

    status = (find_model(run) / "model.json").stat()
    return [status.st_size, status.st_mtime_ns]


class Labelled(list[tuple[str, float]]):
    """The likeliest classes of an image with what it is labelled with: the first, or those above their thresholds."""

    label: str | list[str]
    novelty: float | None = None
    """How unlike the training images it is, above 1 for an unknown one; None: the model does not say."""

    @classmethod
    def of(
        cls,
        row: np.ndarray,
        best: Sequence[int],
        names: Sequence[str],
        thresholds: Sequence[float] | None,
        novelty: float | None = None,
    ) -> Labelled:
        """From the probabilities of all classes, (C,), the `best` ones in their order, and any novelty."""
        made = cls((names[index], float(row[index])) for index in best)
        made.novelty = novelty
        if thresholds is None:
            made.label = made[0][0]
        else:
            made.label = [name for name, value, least in zip(names, row, thresholds, strict=True) if value >= least]
        return made


class UnreadableError(UserError):
    """Some images could not be read; the others were classified."""

    exit_code = 1


def _compute(
    run: str, engine: str, views: str | None, files: Sequence[str], top_k: int | None, coverage: float | None
) -> Answers:
    """Classify with the run's model here, a batch at a time, while threads decode the next ones."""
    import numpy as np

    from imgcls import portable
    from imgcls.portable.model import NO_SETS, likeliest, split_outputs
    from imgcls.portable.reading import read_batches
    from imgcls.runs.run import find_model

    model = portable.load(find_model(run), engine, device=None, views=views)
    if coverage is not None and model.sets is None:
        raise UserError(NO_SETS)
    with closing(read_batches(files, model.preprocessing, BATCH)) as batches:
        for batch, pixels in batches:
            readable = [image for image in pixels if not isinstance(image, str)]
            answers: list[Classes] = []
            if readable:
                logits, novelty = split_outputs(model.outputs(np.stack(readable)), len(model.class_names))
                probabilities = model.activation(logits)
                count = top_k or (TOP_K if model.thresholds is None else len(model.class_names))
                chosen = likeliest(probabilities, count, model.sets, coverage)
                for row, best, score in zip(probabilities, chosen, novelty, strict=True):
                    answers.append(Labelled.of(row, best, model.class_names, model.thresholds, score))
            classes = iter(answers)
            for file, image in zip(batch, pixels, strict=True):
                yield file, image if isinstance(image, str) else next(classes)


def _ask(client: Client, files: Sequence[str], top_k: int | None, coverage: float | None) -> Answers:
    """Classify with the endpoint; an error that is not about an image ends the command."""
    from concurrent.futures import ThreadPoolExecutor

    from imgcls.portable.model import NO_SETS
    from imgcls.serve.client import EndpointError

    def predict_one(file: str) -> Classes | str:
        try:
            prediction = client.answer(Path(file), top_k, coverage)
            entries = prediction["classes"]
            answer = Labelled((entry["class"], float(entry["probability"])) for entry in entries)
            answer.label, answer.novelty = answer[0][0], prediction.get("novelty")
            if "above" in entries[0]:
                every = client.answer(Path(file))["classes"] if top_k is not None else entries
                above = [entry for entry in every if entry["above"]]
                answer.label = [entry["class"] for entry in sorted(above, key=lambda entry: entry["index"])]
            return answer
        except EndpointError as error:
            if error.status not in (400, 413, 415) or NO_SETS in str(error):
                raise
            return str(error)

    with ThreadPoolExecutor(client.parallel) as pool:
        yield from zip(files, pool.map(predict_one, files), strict=True)


def _as_json(file: str, answer: Classes | str) -> str:
    return json.dumps(_as_content(file, answer), ensure_ascii=False)


def _as_content(file: str, answer: Classes | str) -> dict[str, Any]:
    """An answer as a line of JSON has it."""
    content: dict[str, Any] = {"file": picture_name(file)}
    if isinstance(answer, str):
        return {**content, "error": answer}
    if isinstance(answer, Labelled):
        content["label"] = answer.label
    content["classes"] = [{"class": name, "probability": round(value, 6)} for name, value in answer]
    if isinstance(answer, Labelled) and isinstance(answer.label, list):
        content["classes"] = [{**entry, "above": entry["class"] in answer.label} for entry in content["classes"]]
    if isinstance(answer, Labelled):
        content |= novelty_entries(answer.novelty)
    return content


def _csv_head(content: Mapping[str, Any]) -> list[str]:
    """The columns for answers like `content`: of the likeliest classes, or of the labels and each one's probability."""
    classes = content.get("classes", ())
    if isinstance(content.get("label"), list):
        return ["file", "label", *sorted(entry["class"] for entry in classes)]
    later = [f"{name}_{place}" for place in range(2, len(classes) + 1) for name in ("class", "probability")]
    return ["file", "class", "probability", *(["known", "novelty"] if "novelty" in content else []), *later]


def _csv_row(content: Mapping[str, Any], head: Sequence[str]) -> list[object]:
    """The cells of an answer; only the file of an image that cannot be read."""
    classes = content.get("classes", ())
    if not isinstance(content.get("label"), list):
        cells: list[object] = [cell for entry in classes for cell in (entry["class"], entry["probability"])]
        cells[2:2] = [int(content["known"]), content["novelty"]] if "novelty" in content else []
        return [content["file"], *cells]
    values = {entry["class"]: entry["probability"] for entry in classes}
    if sorted(values) != list(head[2:]):
        raise UserError("format=csv has a column for each label: leave top_k out, or use format=jsonl.")
    return [content["file"], join_labels(content["label"], head[2:]), *(values[name] for name in head[2:])]


def _csv_line(cells: Sequence[object]) -> str:
    return table_as_csv([cells]).removesuffix("\n")


def _as_row(width: int) -> Callable[[str, Classes], str]:
    def show(file: str, answer: Classes) -> str:
        label = answer.label if isinstance(answer, Labelled) else None
        shown = [pair for pair in answer if pair[0] in label] if isinstance(label, list) else answer
        text = "  ".join(f"{name} {value:.1%}" for name, value in shown) or "(no label)"
        if isinstance(answer, Labelled) and answer.novelty is not None and answer.novelty > 1:
            text = f"unknown (novelty {answer.novelty:.2f})  {text}"
        return f"{picture_name(file):{width}}  {text}"

    return show


def picture_files(paths: Iterable[str]) -> Iterator[Path]:
    """The files in `paths`, with folders replaced by the images that a training finds in them, sorted."""
    from imgcls.data.folders import describe_unrecognised, pictures_in

    for name in paths:
        path = Path(name).expanduser()
        if path.is_dir():
            others: list[str] = []
            inside = pictures_in(path, others=others)
            hint = describe_unrecognised([str(path / other) for other in others])
            if not inside:
                raise UserError(f"{name}: no images in this folder. {hint}".rstrip())
            if hint:
                print(printable(f"{name}: {hint}"), file=sys.stderr)
            yield from (path / place for place in inside)
        elif path.exists():
            yield path
        else:
            raise UserError(f"{name}: no such file.")


def main() -> None:
    """Run the command line."""
    run_command(lambda: predict(sys.argv[1:]))


if __name__ == "__main__":
    main()
