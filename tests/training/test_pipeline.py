"""Whole small runs, from a configuration to a run folder."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import tarfile
import threading
import time
from functools import cache
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
import yaml
from omegaconf import DictConfig

import imgcls
from imgcls.callbacks.checkpoints import Checkpoints
from imgcls.data.module import ImageDataModule
from imgcls.errors import UserError
from imgcls.export import export
from imgcls.models.classifier import Classifier
from imgcls.runs.reading import read_history
from imgcls.runs.run import Run
from imgcls.system.interrupts import Interrupted
from imgcls.system.lightning_internals import batch_number
from imgcls.training.checkpoint_io import read_checkpoint
from tests.conftest import write_pictures
from tests.processes import as_by_torchrun, run_and_kill
from tests.trainings import SMALL, Fit

TIMES = ("seconds", "images_per_second", "training_seconds", "wall_seconds", "data_wait_fraction")


def numbers(run: Run) -> dict[str, Any]:
    return {name: value for name, value in run.metrics.items() if name not in TIMES}


def weights(run: Run) -> bytes:
    return (run.folder / "model" / "model.safetensors").read_bytes()


def test_a_run_leaves_a_complete_run_folder(fit: Fit) -> None:
    run = fit("trainer.max_epochs=5")
    for name in ("config.yaml", "metrics.csv", "metrics.json", "predictions.csv", "model/model.json", "log.txt"):
        assert (run.folder / name).is_file(), name
    assert run.status["state"] == "finished"
    assert [row["epoch"] for row in run.history] == [1, 2, 3, 4, 5]
    assert len(run.predictions) == 24
    right = sum(int(row["correct"]) for row in run.predictions)
    assert run.metrics["test/accuracy"] == pytest.approx(right / 24)
    assert run.metrics["test/loss"] == pytest.approx(sum(float(row["loss"]) for row in run.predictions) / 24, abs=1e-4)
    best = max(run.history, key=lambda row: (row["val/accuracy"], row["epoch"]))
    assert run.metrics["best_epoch"] == best["epoch"]
    assert "test/accuracy_top5" not in run.metrics  # three classes
    assert not list(run.folder.rglob("*.tmp"))


def test_bad_images_of_all_splits_are_listed_before_training(fit: Fit, pictures: Path) -> None:
    (pictures / "train" / "cat" / "empty.png").touch()
    (pictures / "test" / "dog" / "text.jpg").write_text("no image")
    run = fit("trainer.max_epochs=1")
    rows = (run.folder / "bad_files.csv").read_text().splitlines()
    assert rows[0] == "path,reason"
    assert [Path(row.partition(",")[0]).name for row in rows[1:]] == ["empty.png", "text.jpg"]
    assert len(run.predictions) == 24
    with pytest.raises(UserError, match=r"empty\.png"):
        fit("data.on_bad=error", name="strict")
    (pictures / "train" / "cat" / "empty.png").unlink()
    with pytest.raises(UserError, match=r"text\.jpg"):
        fit("data.on_bad=error", name="stricter")
    assert not (run.folder.parent / "stricter" / "metrics.csv").exists()


def test_the_model_of_a_run_predicts_what_its_test_did(fit: Fit, pictures: Path) -> None:
    run = imgcls.load(fit().folder)
    files = [pictures / row["file"] for row in run.predictions]
    answers = run.predict(files, top_k=1)
    assert [answer[0][0] for answer in answers] == [row["predicted"] for row in run.predictions]
    for answer, row in zip(answers, run.predictions, strict=True):
        assert answer[0][1] == pytest.approx(float(row["confidence"]), abs=1e-4)


def test_the_exported_model_is_calibrated_on_the_validation_images_unless_asked(fit: Fit) -> None:
    options = ["trainer.max_epochs=6", "data.val_fraction=0.4"]
    run, plain = fit(*options, name="a"), fit(*options, "export.calibrate=false", name="b")
    calibration = run.model.description["calibration"]
    assert calibration["images"] == len(np.load(run.folder / "val_labels.npy")) > 0
    assert calibration["temperature"] != 1
    logits = np.load(run.folder / "test_logits.npy")
    assert (np.load(plain.folder / "test_logits.npy") == logits).all()
    powers = np.exp(logits / calibration["temperature"])
    confidence = (powers / powers.sum(axis=1, keepdims=True)).max(axis=1)
    assert [float(row["confidence"]) for row in run.predictions] == pytest.approx(confidence, abs=1e-5)
    assert [row["predicted"] for row in run.predictions] == [row["predicted"] for row in plain.predictions]
    assert plain.model.description["calibration"] == {}
    for split in ("val", "test"):
        assert (
            run.metrics[f"{split}/accuracy_low"]
            <= run.metrics[f"{split}/accuracy"]
            <= run.metrics[f"{split}/accuracy_high"]
        )
    assert not (plain.folder / "val_logits.npy").exists()
    of_plain = numbers(plain)
    assert of_plain == {name: value for name, value in numbers(run).items() if name in of_plain}
    export(plain)
    assert imgcls.load(plain.folder).model.description["calibration"]["temperature"] == pytest.approx(
        calibration["temperature"], rel=1e-4
    )


def test_the_same_seed_gives_the_same_bits_and_another_does_not(fit: Fit) -> None:
    first, second, other = fit(name="a"), fit(name="b"), fit("seed=1", name="c")
    assert numbers(first) == numbers(second)
    assert weights(first) == weights(second)
    assert weights(first) != weights(other)
    images = [(run.folder / "data.json").read_text() for run in (first, other, fit("data.seed=1", name="d"))]
    assert images[0] == images[1] != images[2], "the split has a seed of its own"


def test_depthwise_networks_train_fast_and_repeat_to_the_same_bits(fit: Fit, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: set[tuple[bool, bool]] = set()
    original = Classifier.training_step

    def step(self: Classifier, *args: Any) -> torch.Tensor:
        innermost = self.network.backbone.conv_stem.weight.is_contiguous(memory_format=torch.channels_last)
        seen.add((innermost, torch.utils.deterministic.fill_uninitialized_memory))
        return original(self, *args)

    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    monkeypatch.setattr(Classifier, "training_step", step)
    first, second = (fit("model.name=test_efficientnet", "trainer.max_epochs=2", name=name) for name in "ab")
    assert weights(first) == weights(second)
    assert seen == {(True, False)}, "channels innermost, and no new tensor is filled"


@pytest.mark.parametrize(
    "extra",
    [["checkpoint.in_background=true"], ["optim.ema=0.9", "model.drop_rate=0.3"], ["model.freeze=head_first"]],
)
@pytest.mark.parametrize("batch", [1, 5])
def test_a_run_stopped_in_the_middle_resumes_to_the_same_bits(
    fit: Fit, monkeypatch: pytest.MonkeyPatch, extra: list[str], batch: int
) -> None:
    whole = fit(*extra, name="whole")
    original = Checkpoints.on_train_batch_end

    def signalled(self: Checkpoints, trainer: L.Trainer, *args: Any) -> None:
        if batch_number(trainer) == batch:
            signal.raise_signal(signal.SIGTERM)
        original(self, trainer, *args)

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "on_train_batch_end", signalled)
        with pytest.raises(Interrupted) as stopped:
            fit(*extra, name="stopped")
    assert stopped.value.exit_code == 128 + signal.SIGTERM
    resumed = fit(*extra, name="stopped")
    assert numbers(resumed) == numbers(whole)
    assert weights(resumed) == weights(whole)
    assert resumed.status["resumed"] == 1


def test_sigterm_leaves_a_checkpoint_and_a_clear_status(
    fit: Fit, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(Checkpoints, "on_train_start", _signal_soon(Checkpoints.on_train_start))
    with pytest.raises(Interrupted):
        fit()
    run = imgcls.load(tmp_path / "run")
    assert run.status["state"] == "interrupted"
    assert "SIGTERM" in run.status["reason"]
    assert read_checkpoint(run.folder / "checkpoints" / "last.ckpt")["global_step"] == 1


def _signal_soon(original: Any) -> Any:
    def on_train_start(self: Checkpoints, *args: Any) -> None:
        original(self, *args)
        self.stop._handle(signal.SIGTERM, None)

    return on_train_start


def test_a_finished_run_is_returned_as_it_is(fit: Fit, monkeypatch: pytest.MonkeyPatch) -> None:
    first = fit()
    monkeypatch.setattr("imgcls.training.pipeline.train", lambda *_: pytest.fail("it trained again"))
    assert numbers(fit()) == numbers(first)
    monkeypatch.setenv("RANK", "1")  # the others of torchrun's processes would wait for the first one
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert fit().folder == first.folder


def test_validation_selects_and_the_test_set_is_used_once(fit: Fit, monkeypatch: pytest.MonkeyPatch) -> None:
    tested = []
    original = ImageDataModule.test_dataloader
    monkeypatch.setattr(ImageDataModule, "test_dataloader", lambda self: tested.append(self.tested) or original(self))
    run = fit()
    assert tested in (["test"], ["val", "test"]), "perhaps after the validation images, to calibrate by"
    assert not any(name.startswith("test/") for row in run.history for name in row)


def test_out_of_memory_halves_the_micro_batch_and_keeps_the_batch(fit: Fit, monkeypatch: pytest.MonkeyPatch) -> None:
    from imgcls.models.classifier import Classifier

    sizes: list[int] = []
    original = Classifier.training_step

    def hungry(self: Classifier, batch: Any, batch_idx: int) -> Any:
        if len(batch[0]) > 4:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 TiB")
        sizes.append(len(batch[0]))
        return original(self, batch, batch_idx)

    # a network without batch norms, so the result does not depend on how the batch is split
    options = ["model.name=test_vit", "data.image_size=160", "data.resize=160", "trainer.max_epochs=2"]
    whole = fit(*options, name="whole")
    monkeypatch.setattr(Classifier, "training_step", hungry)
    small = fit(*options, name="small")
    assert set(sizes) == {4}
    assert small.status["micro_batch_size"] == 4
    assert "Out of memory with 16 images at a time: using 8 now" in (small.folder / "log.txt").read_text()
    assert "using 4 now" in (small.folder / "log.txt").read_text()
    for row, reference in zip(small.history, whole.history, strict=True):
        assert row["step"] == reference["step"]
        assert row["train/loss"] == pytest.approx(reference["train/loss"], rel=1e-3)


def test_a_device_without_memory_for_one_image_is_refused(
    fit: Fit, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from imgcls.models.classifier import Classifier

    def hungry(*_: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Classifier, "training_step", hungry)
    with pytest.raises(UserError, match="not have enough memory for one image"):
        fit("data.batch_size=2")
    assert imgcls.load(tmp_path / "run").status["state"] == "failed"


@pytest.mark.usefixtures("forked_workers")
def test_two_processes_give_the_metrics_of_one(fit: Fit) -> None:
    # SGD: Adam's first steps are signs, which rounding can flip; no batch norms, which see only a process's share
    options = ["model.name=test_vit", "data.image_size=160", "data.resize=160", "data.batch_size=15", "optim=sgd"]
    options += ["optim.lr=0.01", "trainer.max_epochs=2"]
    one = fit(*options, name="one")
    two = fit(*options, "trainer.devices=2", name="two")
    assert len(two.predictions) == 24
    assert [row["file"] for row in two.predictions] == [row["file"] for row in one.predictions]
    for row, reference in zip(two.history, one.history, strict=True):
        for name in ("train/loss", "val/loss", "val/accuracy", "val/ece", "val/macro_f1"):
            assert row[name] == pytest.approx(reference[name], rel=2e-3, abs=2e-3), name
    assert two.metrics["test/loss"] == pytest.approx(one.metrics["test/loss"], rel=2e-3)
    assert two.metrics["test/accuracy"] == pytest.approx(one.metrics["test/accuracy"], abs=0.05)


@pytest.mark.usefixtures("forked_workers")
def test_sigterm_stops_all_processes_and_they_resume(fit: Fit, tmp_path: Path) -> None:
    options = ["trainer.devices=2", "trainer.max_epochs=6", "trainer.check_val_every_n_epoch=1"]
    folder, ended = tmp_path / "run", threading.Event()

    def stop_when_training() -> None:
        while not (folder / "metrics.csv").exists() and not ended.wait(0.01):
            pass
        if not ended.is_set():
            os.kill(os.getpid(), signal.SIGTERM)

    watcher = threading.Thread(target=stop_when_training)
    watcher.start()
    try:
        with pytest.raises(Interrupted, match="SIGTERM"):
            fit(*options)
    finally:
        ended.set()
        watcher.join()
    run = imgcls.load(folder)
    assert run.status["state"] == "interrupted"
    assert 1 <= len(run.history) < 6
    assert read_checkpoint(folder / "checkpoints" / "last.ckpt")["epoch"] >= len(run.history) - 1
    assert not (folder / ".processes.json").exists()
    resumed = fit(*options)
    assert [row["epoch"] for row in resumed.history] == list(range(1, 7))
    assert resumed.status["resumed"] == 1


@pytest.mark.usefixtures("forked_workers")
def test_out_of_memory_in_one_of_several_processes_shrinks_the_micro_batch_of_all(fit: Fit) -> None:
    hungry = "data.augment.policy={_target_: tests.training.hungry.Hungry, most: 7}"
    run = fit(hungry, "data.batch_size=15", "trainer.devices=2", "trainer.max_epochs=1")  # shares of 7 and 8
    assert run.status["micro_batch_size"] == 4
    assert run.metrics["epochs"] == 1


def test_early_stopping_waits_for_the_schedule_unless_asked(fit: Fit) -> None:
    options = ["early_stopping=patience", "early_stopping.patience=1", "early_stopping.min_delta=1000"]
    waited = fit(*options, "trainer.max_epochs=8", name="waits")
    assert waited.metrics["epochs"] >= 7  # the cosine is down to a twentieth by then
    cut = fit(*options, "trainer.max_epochs=8", "early_stopping.cut_schedule=true", name="cut")
    assert cut.metrics["epochs"] == 2
    constant = fit(*options, "trainer.max_epochs=8", "optim.schedule=constant", name="constant")
    assert constant.metrics["epochs"] == 2


def test_a_learning_rate_is_found_and_stored(fit: Fit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("imgcls.training.learning_rate.STARTS", 1)
    monkeypatch.setattr("imgcls.training.learning_rate.STEPS", 60)
    run = fit("optim.lr=auto", "trainer.max_epochs=1")
    curve = json.loads((run.folder / "learning_rate.json").read_text())
    assert 1e-6 < curve["suggestion"] < 1
    assert len(curve["lr"]) == len(curve["loss"]) > 10


@pytest.mark.parametrize(
    "options",
    [
        ["optim=sgd", "optim.schedule=onecycle", "loss.class_weights=balanced", "loss.focal_gamma=2"],
        ["optim=adam", "optim.schedule=constant", "data.augment.mixing.mixup=0.4", "data.augment.mixing.cutmix=1.0"],
        ["head=mlp", "model.head.hidden=[20,10]", "optim.layer_decay=0.8", "optim.backbone_lr_scale=0.1"],
        ["model.stem=small", "checkpoint.top_k=2", "data.normalization=dataset", "data.sampler=balanced"],
        [
            "checkpoint.monitor=val/loss",
            "checkpoint.mode=min",
            "trainer.precision=bf16-mixed",
            "model.channels_last=true",
        ],
    ],
)
def test_options_work_together(fit: Fit, options: list[str]) -> None:
    run = fit(*options, "trainer.max_epochs=2")
    assert run.status["state"] == "finished"
    assert 0 <= run.metrics["test/accuracy"] <= 1


def test_weights_come_from_another_run(fit: Fit) -> None:
    first = fit("trainer.max_epochs=6", name="first")
    second = fit(f"model.weights={first.folder}", "model.freeze=backbone", "trainer.max_epochs=1", name="second")
    assert second.metrics["test/accuracy"] >= first.metrics["test/accuracy"] - 0.1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["trainer.accelerator=auto", "trainer.devices=2"], "trainer.devices=2"),
        (["trainer.accelerator=cuda"], "CUDA"),
        (["model.pretrained=true", "model.name=resnet18"], "model.pretrained=false"),
    ],
)
@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_what_this_machine_lacks_is_one_clear_line_before_images_are_decoded(
    fit: Fit, options: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[str] = []
    monkeypatch.setattr(ImageDataModule, "setup", lambda self, stage=None: decoded.append(stage))
    with pytest.raises(UserError, match=message) as caught:
        fit(*options)
    assert not decoded
    assert len(str(caught.value).splitlines()) <= 2
    assert imgcls.load(tmp_path / "run").status["state"] == "failed"


def test_evaluate_and_export_run_no_code_of_a_run_folder(fit: Fit, tmp_path: Path) -> None:
    from imgcls.evaluate import evaluate
    from imgcls.export import export

    run = fit("trainer.max_epochs=1")
    written = tmp_path / "written"
    target = {"_target_": "pathlib.Path", "_args_": [str(written)]}
    code = {"_target_": "imgcls.system.files.atomic_write_text", "target": target, "content": "x"}
    config = yaml.safe_load((run.folder / "config.yaml").read_text())
    config["trainer"]["profiler"] = config["optim"]["x"] = config["data"]["augment"]["x"] = code
    (run.folder / "config.yaml").write_text(yaml.safe_dump(config))
    assert evaluate(run)["accuracy"] == pytest.approx(run.metrics["test/accuracy"])
    export(run, onnx=False)
    config["data"]["root"] = code
    (run.folder / "config.yaml").write_text(yaml.safe_dump(config))
    for command in (evaluate, export):
        with pytest.raises(UserError, match="trust=true"):
            command(run)
    assert not written.exists()


def test_evaluate_repeats_the_test_and_measures_other_data(fit: Fit, tmp_path: Path) -> None:
    from imgcls.evaluate import evaluate

    run = fit()
    again = evaluate(run)
    assert again["accuracy"] == pytest.approx(run.metrics["test/accuracy"])
    assert again["loss"] == pytest.approx(run.metrics["test/loss"], rel=1e-5)
    assert evaluate(run, split="val")["accuracy"] == pytest.approx(run.metrics["val/accuracy"])
    other = write_pictures(tmp_path / "other", {"train": 3, "test": 5}, classes=("dog", "owl"))
    assert evaluate(run, overrides=["data=imagefolder", f"data.root={other}"])["images"] == 10
    one_folder = ["data=imagefolder", f"data.root={other / 'test'}"]
    assert evaluate(run, overrides=one_folder)["images"] == 2
    assert evaluate(run, split="all", overrides=one_folder)["images"] == 10
    alone = write_pictures(tmp_path / "alone", {"all": 5}, classes=("owl",)) / "all"
    assert evaluate(run, split="all", overrides=["data=imagefolder", f"data.root={alone}"])["images"] == 5
    together = as_by_torchrun(2, lambda: evaluate(run))
    assert together == [pytest.approx(again, rel=1e-5)] * 2
    strange = write_pictures(tmp_path / "strange", {"train": 3, "test": 5}, classes=("dog", "fox"))
    with pytest.raises(UserError, match="was not trained with the class 'fox'"):
        evaluate(run, overrides=["data=imagefolder", f"data.root={strange}"])


def test_the_parts_work_with_a_plain_trainer(pictures: Path) -> None:
    from imgcls.data.imagefolder import ImageFolder
    from imgcls.models.backbones import create_network
    from imgcls.models.classifier import Classifier

    data = ImageFolder(pictures, image_size=24, resize=24, batch_size=16)
    model = Classifier(create_network("test_resnet", 3))
    trainer = L.Trainer(max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False)
    trainer.fit(model, datamodule=data)
    assert "val/accuracy" in trainer.callback_metrics
    plain = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(torch.randn(8, 3, 24, 24), torch.arange(8) % 3), batch_size=4
    )
    trainer = L.Trainer(max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False)
    trainer.fit(Classifier(create_network("test_resnet", 3)), plain, plain)


def test_kills_at_random_moments_change_nothing(fit: Fit, tmp_path: Path, pictures: Path) -> None:
    """`kill -9` of forked processes, which need not import anything, until there were IMGCLS_TEST_KILLS of them."""
    fit("trainer.max_epochs=1", name="imports")
    dice, kills, wanted = random.Random(0), 0, int(os.environ.get("IMGCLS_TEST_KILLS", "10"))

    @cache
    def composed(name: str) -> DictConfig:
        return imgcls.compose([*SMALL, "trainer.max_epochs=5", f"data.root={pictures}", f"run_dir={tmp_path / name}"])

    def attempt(name: str, most: float | None = None) -> tuple[bool, float]:
        """Whether it ended before it was killed, and after how many seconds."""
        cfg, began = composed(name), time.monotonic()
        code = run_and_kill(lambda: imgcls.fit(cfg), most)
        assert code in (0, -signal.SIGKILL)
        return code == 0, time.monotonic() - began

    _, length = attempt("whole")
    runs = 0
    while kills < wanted:
        runs += 1
        patience, (ended, seconds) = 1.0, attempt(f"killed{runs}", dice.uniform(0.1, 0.8) * length)
        if ended:  # the machine is quicker than it was: without this, few of the next runs would be hit
            length = min(length, seconds)
        while not ended:
            kills += 1
            patience *= 1.1  # on a machine that has become slow, a run ends all the same
            ended, _ = attempt(f"killed{runs}", dice.uniform(0.1, 0.8) * length * patience)
    whole, *others = (imgcls.load(tmp_path / name) for name in ("whole", *(f"killed{run + 1}" for run in range(runs))))
    for run in others:
        assert numbers(run) == numbers(whole)
        assert weights(run) == weights(whole)
        assert (run.folder / "predictions.csv").read_bytes() == (whole.folder / "predictions.csv").read_bytes()


def test_fit_works_outside_of_the_main_thread(fit: Fit) -> None:
    runs: list[Run] = []
    thread = threading.Thread(target=lambda: runs.append(fit("trainer.max_epochs=1")))
    thread.start()
    thread.join()
    assert runs[0].status["state"] == "finished"


def test_denormal_numbers_are_flushed_to_zero(fit: Fit) -> None:
    products: list[torch.Tensor] = []

    def multiply() -> None:  # in a separate thread: settings that fit makes per thread stay there
        fit("trainer.max_epochs=1")
        products.append(torch.full((1_000_000,), 1e-20) * 1e-20)  # large enough for several of torch's threads

    torch.set_flush_denormal(False)
    thread = threading.Thread(target=multiply)
    thread.start()
    thread.join()
    assert not products[0].any()


def test_a_run_of_the_previous_layout_resumes(tmp_path: Path) -> None:
    """A run interrupted after two of four epochs, with classes at old paths like `imgcls.checkpoints.Checkpoints`."""
    with tarfile.open(Path(__file__).parents[1] / "samples" / "interrupted-v1.tar.xz") as packed:
        packed.extractall(tmp_path, filter="data")
    folder = tmp_path / "interrupted-v1"
    stored = read_history(folder)
    overrides = yaml.safe_load((folder / "overrides.yaml").read_text())
    run = imgcls.fit([*(text for text in overrides if "run_dir" not in text), f"run_dir={folder}"])
    assert [row["epoch"] for row in run.history] == [1, 2, 3, 4]
    assert run.history[:2] == stored
    assert run.status["state"] == "finished"
    assert run.status["resumed"] == 1


@pytest.fixture
def interrupted(fit: Fit, monkeypatch: pytest.MonkeyPatch) -> Fit:
    """Begin a run, and stop it after its first epoch."""
    original = Checkpoints.on_train_epoch_end

    def begin(*overrides: str) -> Run:
        def stop(self: Checkpoints, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            self.stop.requested = signal.SIGTERM
            original(self, trainer, pl_module)

        with monkeypatch.context() as patch:
            patch.setattr(Checkpoints, "on_train_epoch_end", stop)
            with pytest.raises(Interrupted):
                fit(*overrides)
        return fit

    return begin


def test_a_run_begun_when_one_seed_decided_everything_keeps_its_split(interrupted: Fit, tmp_path: Path) -> None:
    fit = interrupted("seed=5", "data.seed=5")
    file = tmp_path / "run" / "config.yaml"
    stored = yaml.safe_load(file.read_text())
    del stored["data"]["order_seed"]
    file.write_text(yaml.safe_dump(stored))
    resumed, whole = fit("seed=5"), fit("seed=5", "data.seed=5", name="whole")
    assert resumed.status["resumed"] == 1
    assert numbers(resumed) == numbers(whole)


def test_a_run_is_not_resumed_with_other_classes(interrupted: Fit, pictures: Path) -> None:
    fit = interrupted()
    for split in ("train", "test"):
        (pictures / split / "cat").rename(pictures / split / "zebra")
    with pytest.raises(UserError, match=r"other classes .*'cat' removed; 'zebra' new"):
        fit()


def test_a_run_is_not_resumed_with_a_class_more(interrupted: Fit, pictures: Path) -> None:
    fit = interrupted()
    for split in ("train", "test"):
        shutil.copytree(pictures / split / "cat", pictures / split / "fox")
    with pytest.raises(UserError, match=r"other classes .*'fox' new"):
        fit()


def test_a_run_is_not_resumed_with_other_images(interrupted: Fit, pictures: Path, tmp_path: Path) -> None:
    fit = interrupted()
    other = write_pictures(tmp_path / "other", {"train": 24, "test": 8}, side=30)
    with pytest.raises(UserError, match="other train images"):
        fit(f"data.root={other}")


def test_a_run_is_resumed_where_its_images_have_moved(interrupted: Fit, pictures: Path, tmp_path: Path) -> None:
    fit = interrupted()
    pictures.rename(tmp_path / "moved")
    assert fit(f"data.root={tmp_path / 'moved'}").status["state"] == "finished"


def test_a_finished_run_is_not_the_result_of_another_folder(fit: Fit, tmp_path: Path) -> None:
    fit("trainer.max_epochs=1")
    other = write_pictures(tmp_path / "other", {"train": 24, "test": 8})
    with pytest.raises(UserError, match=r"finished run on data\.root=.*, not on"):
        fit("trainer.max_epochs=1", f"data.root={other}")


def test_epochs_without_validation_have_no_validation_metrics(fit: Fit) -> None:
    run = fit("trainer.check_val_every_n_epoch=2", "trainer.max_epochs=4")
    assert ["val/accuracy" in row for row in run.history] == [False, True, False, True]
    assert all("train/loss" in row for row in run.history)


@pytest.mark.parametrize("split", ["test", "val"])
def test_a_split_without_a_readable_image_is_left_out(fit: Fit, pictures: Path, split: str) -> None:
    write_pictures(pictures, {"val": 4})
    for file in (pictures / split).rglob("*.png"):
        file.write_bytes(b"x")
    run = fit("trainer.max_epochs=1")
    assert run.status["state"] == "finished"
    assert (run.folder / "model" / "model.json").is_file()
    assert ("test/accuracy" in run.metrics) == (split == "val")
    assert (
        f"None of the {len(list((pictures / split).rglob('*.png')))} {split} images"
        in (run.folder / "log.txt").read_text()
    )


def test_every_flipped_bit_of_a_checkpoint_is_noticed(fit: Fit, tmp_path: Path) -> None:
    run = fit("trainer.max_epochs=1")
    content = (run.folder / "checkpoints" / "last.ckpt").read_bytes()
    rng = np.random.default_rng(0)
    expected = read_checkpoint(run.folder / "checkpoints" / "last.ckpt")
    file = tmp_path / "flipped.ckpt"
    noticed = 0
    for position in rng.integers(0, len(content), 60).tolist():
        flipped = bytearray(content)
        flipped[position] ^= 1 << int(rng.integers(8))
        file.write_bytes(flipped)
        try:
            found = read_checkpoint(file)
        except UserError:
            noticed += 1
        else:  # padding between the parts: the content is the same
            for name, value in expected["state_dict"].items():
                assert torch.equal(found["state_dict"][name], value)
    assert noticed > 40


def test_a_signal_after_the_last_step_ends_the_run_before_its_test(fit: Fit, monkeypatch: pytest.MonkeyPatch) -> None:
    original = Checkpoints.on_train_end

    def stop(self: Checkpoints, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.stop.requested = signal.SIGTERM
        original(self, trainer, pl_module)

    monkeypatch.setattr(Checkpoints, "on_train_end", stop)
    with pytest.raises(Interrupted):
        fit("trainer.max_epochs=1")
    monkeypatch.undo()
    assert fit("trainer.max_epochs=1").status["state"] == "finished"


def test_what_a_killed_write_left_is_removed(fit: Fit, tmp_path: Path) -> None:
    left = tmp_path / "run" / "checkpoints" / ".last.ckpt.1234abcd.tmp"
    left.parent.mkdir(parents=True)
    left.write_bytes(b"half")
    fit("trainer.max_epochs=1")
    assert not left.exists()


def test_a_batch_norm_with_one_value_is_explained(fit: Fit) -> None:
    with pytest.raises(UserError, match="single value per channel"):
        fit("data.batch_size=1", "data.image_size=32", "data.resize=32", "trainer.max_epochs=1")


@pytest.mark.parametrize("precision", ["bf16-true", "16-true", "64-true"])
def test_a_precision_that_cannot_be_exported_is_refused_before(precision: str) -> None:
    with pytest.raises(UserError, match=r"trainer\.precision"):
        imgcls.compose([f"trainer.precision={precision}"])
