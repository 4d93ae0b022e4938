"""What else exists works with several labels, or is refused in one line."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import numpy as np
import pytest

import imgcls
from imgcls.audit.__main__ import audit_run
from imgcls.data.table import Table
from imgcls.deploy.probe import compare
from imgcls.deploy.samples import Sample
from imgcls.errors import UserError
from imgcls.export import export
from imgcls.predict import predict
from imgcls.prepare import _command as prepare_command
from imgcls.prepare import prepare, table
from imgcls.report.comparison import write_comparison
from imgcls.runs.run import Run
from imgcls.serve.answers import negotiate, render
from imgcls.soup import soup
from tests.serve.test_label_ways import NAMES, PLAIN, write

QUICK = ["data.image_size=24", "data.resize=24", "data.batch_size=16", "trainer.max_epochs=1", "optim.lr=3e-3"]
QUICK += ["debug=off", "export.onnx=false", "data.val_fraction=0.3"]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("labels") / "pictures", 60)


@pytest.fixture(scope="module")
def run(root: Path) -> Run:
    return train(root, root.parent / "plain")


def train(root: Path, folder: Path, *words: str) -> Run:
    data = [f"data={root / 'labels.csv'}", "data.label_separator=|"]
    return imgcls.fit(imgcls.compose([*PLAIN, *data, *QUICK, *words, f"run_dir={folder}"]))


@pytest.mark.parametrize(
    "words",
    [
        ["loss.negative_gamma=4", "loss.focal_gamma=1"],
        ["loss.class_weights=balanced", "loss.label_smoothing=0.1", "data.sampler=balanced"],
        ["data.augment.mixing.mixup=0.2", "data.augment.mixing.cutmix=1.0", "model.views=flip"],
        ["checkpoint.average=greedy", "trainer.max_epochs=2", "early_stopping=patience", "early_stopping.patience=1"],
        ["optim.ema=0.9", "checkpoint.monitor=val/micro_f1", "thresholds.aim=recall", "thresholds.at_least=0.8"],
        ["data.store=none", "data.fit=pad", "data.image_size=[24,32]"],
        ["model.in_channels=1", "data.group=(\\d)\\d\\.png"],
    ],
    ids=lambda words: words[0].partition("=")[0],
)
def test_options(words: list[str], root: Path, tmp_path: Path) -> None:
    run = train(root, tmp_path / "run", *words)
    assert 0 < run.metrics["test/map"] <= 1
    assert run.model.thresholds is not None
    assert len(run.model.thresholds) == len(NAMES)


def test_a_frozen_backbone_and_its_features(run: Run, root: Path, tmp_path: Path) -> None:
    weights = f"model.weights={run.folder}"
    for more in (["model.feature_views=0"], ["model.feature_views=2", "optim.lr=auto"]):
        frozen = train(root, tmp_path / more[0], weights, "model.freeze=backbone", "trainer.max_epochs=3", *more)
        assert 0 < frozen.metrics["test/map"] <= 1
        assert "feature_vectors_per_second" in frozen.metrics
    with pytest.raises(UserError, match=r"model\.solve_head=true is for images of one label"):
        train(root, tmp_path / "solved", weights, "model.solve_head=true")


def test_a_search(root: Path, tmp_path: Path) -> None:
    data = [*PLAIN, f"data={root / 'labels.csv'}", "data.label_separator=|", *QUICK]
    space = {"optim.lr": "interval(1e-4,1e-2)"}
    found = imgcls.search(data, space, trials=2, objective="val/map", folder=tmp_path / "study")
    assert 1e-4 <= found.best["optim.lr"] <= 1e-2
    assert all(0 < trial["val/map"] <= 1 for trial in found.trials)


def test_checks_before_the_training(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prepare_command(
        [f"data={root / 'labels.jsonl'}", "task=multilabel", "data.image_size=24", "model.pretrained=false"]
    )
    printed = capsys.readouterr().out
    assert all(name in printed for name in NAMES)
    data = Table(table=root / "labels.csv", label_separator="|", image_size=24, resize=24)
    shown = table(prepare(data))
    assert all(name in shown for name in NAMES)
    matplotlib.use("Agg")
    titles = [axes.get_title() for axes in data.show_batch(4).axes]
    assert all(set(title.split(", ")) <= {*NAMES, "(none)"} for title in titles if title)


def test_what_a_run_offers(run: Run, root: Path, tmp_path: Path) -> None:
    assert imgcls.evaluate(run, split="val")["map"] == pytest.approx(run.metrics["val/map"], abs=1e-4)
    assert export(run, onnx=False)["safetensors"].sound
    assert len(run.top_losses(3)) <= 3
    with pytest.raises(UserError, match="one label"):
        run.plot_confusion()
    other = train(root, tmp_path / "other", "seed=1")
    page = write_comparison([run.folder, other.folder], tmp_path / "comparison.html").read_text()
    assert "2 seeds of one configuration: mean average precision" in page
    assert "could not be created" not in page


def test_folds_and_their_ensemble(run: Run, root: Path, tmp_path: Path) -> None:
    options = [f"model.weights={run.folder}", "model.freeze=backbone", "cv.folds=2", "cv.ensemble=true"]
    folds = train(root, tmp_path / "folds", *options)
    assert 0 < folds.metrics["test/map"] <= 1
    header, *rows = (folds.folder / "out_of_fold.csv").read_text().splitlines()
    assert len(rows) == 48, "all but the test images, which are in no fold"
    assert header.endswith(",".join(f"p({name})" for name in NAMES))
    files = sorted(root.glob("*.png"))[:3]
    given = folds.model.labels([str(file) for file in files])
    assert {name for labels in given for name, _ in labels} <= set(NAMES)
    space = {"optim.lr": "interval(1e-4,1e-2)"}
    data = [*PLAIN, f"data={root / 'labels.csv'}", "data.label_separator=|", *QUICK]
    found = imgcls.search(data, space, trials=1, cv=2, objective="val/map", folder=tmp_path / "study")
    assert 0 < found.trials[0]["val/map"] <= 1


def test_adapters_and_a_soup(run: Run, root: Path, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    options = [f"model.weights={run.folder}", "model.adapter=lora", "model.adapter_rank=4"]
    members = [train(root, tmp_path / f"seed{seed}", *options, f"seed={seed}") for seed in (0, 1)]
    found = soup(members, tmp_path / "soup", onnx=False)
    assert found.metrics["val/map"] >= max(member.metrics["val/map"] for member in members) - 1e-6
    assert found.model.thresholds is not None
    features = found.model.embed([str(file) for file in sorted(root.glob("*.png"))[:3]])
    assert features.shape == (3, found.model.network.num_features)


def test_what_is_for_images_of_one_label_is_refused(run: Run, root: Path, tmp_path: Path) -> None:
    frozen = [f"model.weights={run.folder}", "model.freeze=backbone"]
    for more, message in (
        ([*frozen, "head=prototype"], "head=prototype keeps features .* of one view and one label"),
        ([*frozen, "head=knn"], "head=knn keeps features .* of one view and one label"),
        ([f"loss.teacher={run.folder}"], "loss.teacher is for images of one label each"),
    ):
        with pytest.raises(UserError, match=message):
            train(root, tmp_path / "refused", *more)
    with pytest.raises(UserError, match="coverage: the model was exported without sets of classes"):
        predict([f"run={run.folder}", "coverage=0.9", str(next(root.glob("*.png")))])
    with pytest.raises(UserError, match=r"export\.known=0\.9 is for images with one label each"):
        train(root, tmp_path / "known", "export.known=0.9")
    with pytest.raises(UserError, match=r"known=0\.9: unknown images are told for images with one label each"):
        export(run, onnx=False, known=0.9)
    with pytest.raises(UserError, match="The audit is for images with one label each"):
        audit_run(run)


def test_the_probe_of_an_endpoint(run: Run, root: Path) -> None:
    """As `deploy` compares an endpoint's answers with the local model."""
    files = sorted(root.glob("*.png"))[:4]
    samples = [Sample(file.name, file.read_bytes()) for file in files]

    def ask(content: bytes, accept: str) -> bytes:
        model = run.model
        logits = model.engine.outputs(
            model.preprocessing.normalise(model.preprocessing.pixels(model.preprocessing.open(content))[None])
        )
        return render(list(np.asarray(logits)), model.class_names, negotiate(accept), model.thresholds)[0]

    assert compare(ask, run.model_folder, samples, 1e-3).others == ()
