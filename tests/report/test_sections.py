"""Each section says what the files of the run say."""

from __future__ import annotations

import base64
import html
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from imgcls.portable.calibration import expected_error
from imgcls.report import report_data
from imgcls.report.blocks import Blocks, Matrix, Pictures, Table, Text
from imgcls.report.headline import facts, headline
from imgcls.report.intervals import wilson
from imgcls.report.page import write_report
from imgcls.report.run_data import RunData
from imgcls.report.sections import SECTIONS
from imgcls.report.sections.calibration import adaptive_bins, adaptive_error
from imgcls.report.sections.profile import profile_blocks
from imgcls.runs.confusion import Confusion
from imgcls.runs.run import Run, print_summary
from imgcls.system.tables import as_csv
from tests.report.test_report import run_folder

NAMES = ["ant", "bee", "cat"]


def run_with_outputs(folder: Path, count: int = 300, seed: int = 0) -> tuple[RunData, np.ndarray, np.ndarray]:
    """A run with `count` random test outputs, and these: logits and labels."""
    run_folder(folder, NAMES)
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, count)
    logits = rng.normal(size=(count, 3)) + 2.0 * np.eye(3)[labels]
    np.save(folder / "test_logits.npy", logits)
    np.save(folder / "test_labels.npy", labels)
    predicted = logits.argmax(axis=1)
    Confusion.of(labels, predicted, NAMES).write(folder)
    powers = np.exp(logits)
    probabilities = powers / powers.sum(axis=1, keepdims=True)
    rows = [
        {
            "file": f"{number}.jpg",
            "label": NAMES[label],
            "predicted": NAMES[answer],
            "correct": int(label == answer),
            "confidence": round(probabilities[number].max(), 6),
            "loss": round(-np.log(probabilities[number, label]), 6),
        }
        for number, (label, answer) in enumerate(zip(labels, predicted, strict=True))
    ]
    (folder / "predictions.csv").write_text(as_csv(rows))
    per_class = [
        {"class": name, "pictures": int((labels == place).sum()), "accuracy": 0.5, "average_precision": 0.25 * place}
        for place, name in enumerate(NAMES)
    ]
    (folder / "per_class.csv").write_text(as_csv(per_class))
    return RunData(folder), logits, labels


def content(run: RunData, title: str) -> Blocks:
    """The blocks of a section."""
    return next(section for section in SECTIONS if section.title == title).make(run)


def only(blocks: Blocks, kind: type) -> list:  # type: ignore[type-arg]
    return [block for block in blocks if isinstance(block, kind)]


def test_every_section_is_listed_once_and_is_empty_without_files(tmp_path: Path) -> None:
    assert len({section.title for section in SECTIONS}) == len(SECTIONS)
    folder = Path(__file__).parents[2] / "imgcls" / "report" / "sections"
    modules = {file.stem for file in folder.glob("*.py")} - {"__init__", "section"}
    assert len(SECTIONS) == len(modules)
    (tmp_path / "config.yaml").write_text("seed: 0\n")
    left = {section.title for section in SECTIONS if section.make(RunData(tmp_path))}
    assert left == {"Configuration"}


def test_classes_have_precision_recall_and_f1_and_the_worst_is_first(tmp_path: Path) -> None:
    run, logits, labels = run_with_outputs(tmp_path / "run")
    [table] = only(content(run, "Classes"), Table)
    predicted, f1 = logits.argmax(axis=1), []
    for name, images, *shares in table.rows:
        place = NAMES.index(name)
        hits = ((predicted == place) & (labels == place)).sum()
        precision, recall = hits / (predicted == place).sum(), hits / (labels == place).sum()
        f1.append(2 * precision * recall / (precision + recall))
        expected = [f"{value:.1%}" for value in (precision, recall, f1[-1], 0.25 * place)]
        assert [images, *shares] == [str((labels == place).sum()), *expected]
    assert f1 == sorted(f1)
    assert table.total[1] == "300"
    assert table.total[4] == f"{np.mean(f1):.1%}"


def test_curves_have_the_areas_of_their_scores(tmp_path: Path) -> None:
    run, logits, labels = run_with_outputs(tmp_path / "run")
    [table] = only(content(run, "ROC and precision-recall"), Table)
    powers = np.exp(logits)
    probabilities = powers / powers.sum(axis=1, keepdims=True)
    for name, area, _ in table.rows:
        place = NAMES.index(name)
        own, others = probabilities[labels == place, place], probabilities[labels != place, place]
        assert float(area) == pytest.approx((own[:, None] > others).mean(), abs=5e-5)
    many = run_folder(tmp_path / "many", [f"class {n}" for n in range(21)])
    np.save(many / "test_logits.npy", np.eye(21))
    np.save(many / "test_labels.npy", np.arange(21))
    assert content(RunData(many), "ROC and precision-recall") == []


def test_thresholds_say_what_remains_and_what_of_it_is_right(tmp_path: Path) -> None:
    run, logits, labels = run_with_outputs(tmp_path / "run")
    [text], tables = (only(content(run, "Confidence thresholds"), kind) for kind in (Text, Table))
    powers = np.exp(logits)
    confidence, correct = powers.max(axis=1) / powers.sum(axis=1), logits.argmax(axis=1) == labels
    kept = confidence >= 0.8
    assert f"above 80%: {kept.mean():.0%} of the images, {correct[kept].mean():.1%} right." in text.text
    surest = np.argsort(-confidence)[:270]
    assert f"Accept the 90% surest answers: {correct[surest].mean():.1%} right." in text.text
    row = next(row for row in tables[0].rows if row[0] == "80%")
    low, high = wilson(correct[kept].sum(), kept.sum())
    assert row[1:] == [str(kept.sum()), f"{kept.mean():.1%}", f"{correct[kept].mean():.1%}", f"{low:.1%} to {high:.1%}"]
    assert tables[1].rows[0][2] == f"{correct.mean():.1%}"


def test_the_matrix_has_every_cell_that_has_images(tmp_path: Path) -> None:
    run, logits, labels = run_with_outputs(tmp_path / "run")
    [matrix] = only(content(run, "Confusion matrix"), Matrix)
    counts = np.zeros((3, 3), dtype=int)
    np.add.at(counts, (labels, logits.argmax(axis=1)), 1)
    assert {(row, column): images for row, column, images in matrix.cells} == {
        (row, column): counts[row, column] for row, column in np.ndindex(3, 3) if counts[row, column]
    }
    page = write_report(run.folder).read_text()
    assert f'id="{matrix.errors}"' in page
    stored = re.search(r'<script type="application/json">(.*?)</script>', page)
    assert stored
    assert json.loads(stored[1])["names"] == NAMES
    for value in ("row", "column", "none"):
        assert f'value="{value}"' in page


def test_every_misclassified_image_is_an_image_or_a_row(tmp_path: Path) -> None:
    run, logits, labels = run_with_outputs(tmp_path / "run")
    wrong = {f"{number}.jpg" for number in np.flatnonzero(logits.argmax(axis=1) != labels)}
    (run.folder / "report_data").mkdir()
    stored = dict.fromkeys(sorted(wrong)[:5], "image")
    (run.folder / "report_data" / "pictures.json").write_text(json.dumps(stored))
    near = {sorted(wrong)[0]: [{"image": "neighbour", "label": "bee"}]}
    (run.folder / "report_data" / "neighbours.json").write_text(json.dumps({"pictures": near}))
    blocks = content(run, "Misclassified images")
    [text], [pictures], [table] = (only(blocks, kind) for kind in (Text, Pictures, Table))
    assert {row["file"] for row in pictures.pictures} == set(stored)
    assert {row["file"] for row in pictures.pictures} | {row[0] for row in table.rows} == wrong
    assert len(pictures.pictures) + len(table.rows) == len(wrong)
    assert text.text.startswith(f"{len(wrong)} of 300 test images")
    assert [row["near"] for row in pictures.pictures if row["near"]] == [near[sorted(wrong)[0]]]
    assert 'src="data:image/jpeg;base64,neighbour"' in write_report(run.folder).read_text()


def test_images_are_as_many_and_as_large_as_the_page_has_room_for(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    noise = [Image.fromarray(rng.integers(0, 256, (30, 30, 3), dtype=np.uint8)).resize((300, 300)) for _ in range(5)]

    class Split:
        def __init__(self, names: list[str]) -> None:
            self.names = names

        def preview(self, index: int, depth: object) -> Image.Image:
            return noise[index % 5]

    class Data:
        depth = None

    sizes = {}
    for count in (20, 100, 2000):
        folder = tmp_path / str(count)
        folder.mkdir()
        rows = [
            {"file": f"{n}.jpg", "label": "a", "predicted": "b", "correct": 0, "confidence": 0.5, "loss": n}
            for n in range(count)
        ]
        (folder / "predictions.csv").write_text(as_csv(rows))
        data = Data()
        data.source = Data()  # type: ignore[attr-defined]
        data.source.test = Split([row["file"] for row in rows])  # type: ignore[attr-defined]
        images = report_data._collect_thumbnails(folder, data)  # type: ignore[arg-type]
        assert sum(map(len, images.values())) < report_data.MAX_CHARACTERS + 50_000
        first = Image.open(io.BytesIO(base64.b64decode(images[f"{count - 1}.jpg"])))
        sizes[count] = (len(images), max(first.size))
    assert sizes[20] == (20, 224)
    assert sizes[20][1] > sizes[100][1] > sizes[2000][1] >= 64
    assert sizes[100][0] < sizes[2000][0] < 2000


def test_few_images_have_adaptive_bins(tmp_path: Path) -> None:
    run, logits, labels = run_with_outputs(tmp_path / "run")
    powers = np.exp(logits)
    confidence, correct = powers.max(axis=1) / powers.sum(axis=1), logits.argmax(axis=1) == labels
    [text] = only(content(run, "Calibration"), Text)
    adaptive = adaptive_error(confidence, correct.astype(float), adaptive_bins(300))
    assert f"over 15 bins of equally many images it is {adaptive:.4f}" in text.text
    assert "on 300 test images" in text.text
    assert adaptive_bins(100) == 5
    many, _, _ = run_with_outputs(tmp_path / "many", count=1200)
    assert "equally many" not in only(content(many, "Calibration"), Text)[0].text
    # a calibrated model of few images: equal bins find more error than there is, and more than adaptive ones
    rng, errors = np.random.default_rng(0), []
    for _ in range(200):
        sure = rng.uniform(0.3, 1, 60)
        right = (rng.random(60) < sure).astype(float)
        errors.append((expected_error(sure, right), adaptive_error(sure, right, adaptive_bins(60))))
    equal, few = np.mean(errors, axis=0)
    assert few < 0.6 * equal


def test_the_choice_between_epochs_has_its_doubt(tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "run", NAMES)
    (folder / "config.yaml").write_text("checkpoint: {monitor: val/accuracy}\n")
    (folder / "data.json").write_text(json.dumps({"splits": {"val": [100, "x"]}}))

    def text(*values: float) -> str:
        rows = [{"epoch": n, "val/accuracy": value, "val/loss": 1.0} for n, value in enumerate(values)]
        (folder / "metrics.csv").write_text(as_csv(rows))
        return " ".join(block.text for block in only(content(RunData(folder), "Learning curves"), Text))

    assert "3 of the 4 epochs are in that interval: which of them is best is not sure" in text(0.5, 0.88, 0.9, 0.91)
    assert "on 100 validation images, 91.0%" in text(0.5, 0.88, 0.9, 0.91)
    assert "the choice is sure" in text(0.5, 0.6, 0.91)


@pytest.mark.parametrize(
    ("share", "weights", "line"),
    [
        (1.0, "has the weights of epoch 2: no mixture", "2 epochs (the best: 2) in 3 s"),
        (
            0.25,
            "are 25% those of epoch 2 and 75% those with which",
            "2 epochs (the best: 25% of epoch 2, 75% of the start)",
        ),
        (0.0, "has the weights with which fine-tuning began", "2 epochs (the best: the start) in 3 s"),
    ],
)
def test_a_mixture_of_weights_is_no_best_epoch(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], share: float, weights: str, line: str
) -> None:
    folder = run_folder(tmp_path / "run", NAMES)
    (folder / "config.yaml").write_text("checkpoint: {monitor: val/accuracy}\n")
    (folder / "data.json").write_text(json.dumps({"splits": {"val": [100, "x"]}}))
    metrics = {"best_epoch": 2, "finetuned_share": share, "epochs": 2, "seconds": 3.0, "val/accuracy": 0.5}
    (folder / "metrics.json").write_text(json.dumps(metrics))
    rows = [{"epoch": n, "val/accuracy": 0.5, "val/loss": 1.0} for n in (1, 2)]
    (folder / "metrics.csv").write_text(as_csv(rows))
    [text] = only(content(RunData(folder), "Learning curves"), Text)
    assert weights in text.text
    assert (("best epoch", "2", "") in headline(RunData(folder))[1]) == (share == 1)
    print_summary(Run(folder))
    assert line in capsys.readouterr().out


def test_a_solved_head_has_no_curve(tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "run", NAMES)
    (folder / "metrics.csv").write_text(as_csv([{"epoch": 1, "val/accuracy": 0.5, "val/loss": 1.0, "lr": 0.0}]))
    (folder / "metrics.json").write_text('{"epochs": 0}')
    (folder / "debug").mkdir(exist_ok=True)
    np.savez(folder / "debug" / "steps.npz", loss=np.zeros(1), rate=np.zeros(1))  # the rules saw the head once
    [text] = content(RunData(folder), "Learning curves")
    assert text == Text("The head was solved, without epochs: there is no curve to draw.")


def test_the_top_says_what_was_trained_and_whether_it_beats_a_guess(tmp_path: Path) -> None:
    run, _, _ = run_with_outputs(tmp_path / "run")
    (run.folder / "config.yaml").write_text(
        "model: {name: resnet18, pretrained: true, freeze: backbone}\ndata: {root: /somewhere/flowers}\n"
    )
    (run.folder / "data.json").write_text(json.dumps({"splits": {"train": [700, "a"], "test": [300, "b"]}}))
    (run.folder / "status.json").write_text(json.dumps({"state": "finished", "started": "2026-11-29T06:26:48+0000"}))
    metrics = {"test/accuracy": 0.9, "parameters": 11_689_512, "seconds": 3725.0}
    (run.folder / "metrics.json").write_text(json.dumps(metrics))
    (run.folder / "environment.json").write_text(json.dumps({"cpus": 2}))
    assert facts(RunData(run.folder)) == [
        ("model", "resnet18, pretrained weights, frozen backbone"),
        ("parameters", "11,689,512"),
        ("data", "flowers: 700 training, 300 test images"),
        ("started", "2026-11-29 06:26"),
        ("training", "1 h 2 min"),
        ("machine", "2 CPU cores"),
    ]
    sizes = {row["class"]: int(row["pictures"]) for row in RunData(run.folder).table("per_class.csv")}
    largest = max(sizes, key=sizes.__getitem__)
    sentence, _ = headline(RunData(run.folder))
    assert (
        f"Always answering {largest}, the largest class, would be right for {sizes[largest] / 300:.1%} of them."
        in sentence
    )
    low = {"test/accuracy": 0.36, "test/accuracy_low": 0.31, "test/accuracy_high": 0.42}
    (run.folder / "metrics.json").write_text(json.dumps(low))
    assert "not clearly better" in headline(RunData(run.folder))[0]


def test_the_page_of_120_classes_and_many_errors_stays_below_a_megabyte(tmp_path: Path) -> None:
    names = [f"{n:03}.A_long_name_of_a_breed" for n in range(120)]
    folder = run_folder(tmp_path / "run", names)
    rng = np.random.default_rng(0)
    labels, predicted = (rng.integers(0, 120, 3000) for _ in range(2))
    Confusion.of(labels, predicted, names).write(folder)
    rows = [
        {"file": f"test/{names[a]}/{n:05}.jpg", "label": names[a], "predicted": names[b], "correct": int(a == b),
         "confidence": 0.5, "loss": 3.0}
        for n, (a, b) in enumerate(zip(labels, predicted, strict=True))
    ]  # fmt: skip
    (folder / "predictions.csv").write_text(as_csv(rows))
    left, images = report_data.MAX_CHARACTERS, {}
    for row in rows:  # as many as the budget has room for
        images[row["file"]] = "x" * 1800
        left -= 1800 + report_data.MARKUP_CHARACTERS
        if left < 0:
            break
    (folder / "report_data").mkdir()
    (folder / "report_data" / "pictures.json").write_text(json.dumps(images))
    page = write_report(folder).read_text()
    assert len(page.encode()) < 1_000_000
    assert "more in predictions.csv" in page
    for name in names:
        assert html.escape(name) in page


def test_every_figure_has_a_title_for_screen_readers(tmp_path: Path) -> None:
    run, _, _ = run_with_outputs(tmp_path / "run")
    page = write_report(run.folder).read_text()
    svgs = re.findall(r"<svg [^>]*>(?:<title>[^<]+</title>)?", page)
    assert len(svgs) > 5
    assert all("<title>" in svg for svg in svgs)
    assert all('role="img"' in svg for svg in svgs)


def test_a_page_that_would_be_too_large_draws_fewer_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, _, _ = run_with_outputs(tmp_path / "run")
    wrong = [row["file"] for row in run.predictions if row["correct"] == "0"]
    (run.folder / "report_data").mkdir()
    (run.folder / "report_data" / "pictures.json").write_text(json.dumps(dict.fromkeys(wrong, "x" * 4000)))
    assert write_report(run.folder).read_text().count("data:image/jpeg") >= len(wrong) > 40
    monkeypatch.setattr("imgcls.report.page.MAX_BYTES", 300_000)
    page = write_report(run.folder).read_text()
    section = page.partition('id="misclassified-images"')[2].partition("</section>")[0]
    assert section.count("data:image/jpeg") in (30, 10)
    assert all(f">{file}<" in section for file in wrong)


def test_rates_of_disk_and_network_are_read_in_megabytes() -> None:
    spread = {"max": 357_700_000.0, "p99": 5e6, "p95": 12.5, "p50": 0.0, "min": 0.0}
    system = [{"name": name, "unit": unit, **spread} for name, unit in (("disk", "bytes/s"), ("CPU", "%"))]
    [table] = only(profile_blocks({"system": system, "summary": {"training": {"share": 1.0}}}), Table)
    assert table.rows[0] == ["disk, MB/s", "357.7", "5", "0", "0", "0"]
    assert table.rows[1][:2] == ["CPU, %", "3.577e+08"]
