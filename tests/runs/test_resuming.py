"""The command that resumes a run that was stopped, and `resume=last`."""

from __future__ import annotations

import shlex
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

import imgcls
from imgcls.callbacks.checkpoints import Checkpoints
from imgcls.config.composition import compose, plain
from imgcls.errors import UserError
from imgcls.runs.earlier import EARLIER, Earlier
from imgcls.runs.reading import read_status
from imgcls.runs.recording import Recording
from imgcls.runs.resuming import as_begun, resume_command, resume_last
from imgcls.train import main
from tests.trainings import DIGITS


def command(*arguments: str) -> int:
    """The exit code of a training command with `arguments`, in this process."""
    from hydra.core.global_hydra import GlobalHydra

    before, sys.argv = sys.argv, ["imgcls.train", *arguments]
    GlobalHydra.instance().clear()
    try:
        main()
    except SystemExit as ended:
        return int(ended.code or 0)
    finally:
        sys.argv = before
    return 0


def stop_after_first_epoch(patch: pytest.MonkeyPatch) -> None:
    original = Checkpoints.on_train_epoch_end

    def stop(self: Checkpoints, *args: Any) -> None:
        self.stop.requested = signal.SIGINT
        original(self, *args)

    patch.setattr(Checkpoints, "on_train_epoch_end", stop)


def printed_command(text: str) -> list[str]:
    """The arguments of the command in the last line of `text`, split as a shell does."""
    words = shlex.split(text.strip().splitlines()[-1])
    assert words[:3] == ["python", "-m", "imgcls.train"]
    return words[3:]


SHORT = [*DIGITS, "model.pretrained=false", "trainer.max_epochs=2", "report=false", "data.batch_size=512"]


def test_a_stopped_run_prints_the_command_that_resumes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with monkeypatch.context() as patch:
        stop_after_first_epoch(patch)
        assert command(*SHORT, "model.options={}") == 130
    arguments = printed_command(capsys.readouterr().err)
    assert command(*arguments) == 0
    [file] = (tmp_path / "runs").glob("*/*/status.json")
    run = imgcls.load(file.parent)
    assert (run.status["state"], run.status["resumed"], len(run.history)) == ("finished", 1, 2)


def test_a_stopped_sweep_prints_the_command_that_resumes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with monkeypatch.context() as patch:
        stop_after_first_epoch(patch)
        assert command("-m", *SHORT, "seed=3,4", "test=false") == 130
    assert len(list(tmp_path.glob("sweeps/*/*/*/status.json"))) == 1, "no further run begins after the signal"
    assert command(*printed_command(capsys.readouterr().err)) == 0
    states = {file.parent.name: read_status(file.parent) for file in tmp_path.glob("sweeps/*/*/*/status.json")}
    assert {name: (status["state"], status["resumed"]) for name, status in states.items()} == {
        "0": ("finished", 1),
        "1": ("finished", 0),
    }


@pytest.mark.parametrize("folder", ["runs/a", "runs/größe (1)", "it's/x", "a,b/{c}", "C:\\x", "it\\'s", "end \\"])
def test_any_folder_survives_the_shell_and_hydra(folder: str) -> None:
    words = printed_command(resume_command(["data.root=my photos", "run_dir=old", "resume=never"], "run_dir", folder))
    assert words[0] == "data.root=my photos"
    assert compose(words[1:]).run_dir == folder


def test_no_secret_is_printed() -> None:
    assert "hunter2" not in resume_command(["search.storage=postgresql://me:hunter2@host/db"], "run_dir", "runs/a")


def begin(folder: Path, *overrides: str, finished: bool = False) -> None:
    """A run folder of these overrides, as a kill leaves it, or finished."""
    with Recording(folder, plain(compose([*overrides, f"run_dir={folder}"]))) as recording:
        recording.update(state="finished" if finished else "running")


def test_the_newest_unfinished_run_of_the_same_options_is_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    day = Path("runs/2026-01-01")
    options = ["seed=7", "resume=last"]
    cfg = compose(options)
    assert resume_last(cfg).run_dir == cfg.run_dir
    assert "no unfinished run of this configuration" in capsys.readouterr().err
    for name, overrides, finished in (
        ("1-older", ["seed=7"], False),
        ("2-newer", ["seed=7", "trainer.devices=2"], False),
        ("3-other", ["seed=8"], False),
        ("4-finished", ["seed=7"], True),
        ("5-locked", ["seed=7"], False),
    ):
        begin(day / name, *overrides, finished=finished)
    (day / "6-damaged").mkdir()
    (day / "6-damaged" / "status.json").write_text("{")
    with Recording(day / "5-locked", plain(compose(["seed=7"]))):
        cfg = resume_last(compose(options))
    assert (cfg.run_dir, cfg.resume) == ("runs/2026-01-01/2-newer", "auto")
    assert "resuming runs/2026-01-01/2-newer (running" in capsys.readouterr().err
    assert resume_last(compose(["seed=8", "resume=last"])).run_dir == "runs/2026-01-01/3-other"


def test_a_given_folder_leaves_nothing_to_find() -> None:
    with pytest.raises(UserError, match=r"Leave out run_dir=runs/a"):
        resume_last(compose(["resume=last", "run_dir=runs/a"]))


def test_the_command_resumes_the_last_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with monkeypatch.context() as patch:
        stop_after_first_epoch(patch)
        assert command(*SHORT) == 130
    assert command(*SHORT, "resume=last") == 0
    [file] = (tmp_path / "runs").glob("*/*/status.json")
    assert read_status(file.parent)["resumed"] == 1
    assert "resume: auto" in (file.parent / "config.yaml").read_text()
    assert "resume=last" not in yaml.safe_load((file.parent / "overrides.yaml").read_text())
    assert [path.parent for path in file.parent.parent.glob("*/")] == [file.parent.parent], "no empty folder is left"


def test_a_run_keeps_the_defaults_that_it_began_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    overrides = [*SHORT, f"run_dir={tmp_path}"]
    now = compose(overrides)
    then = plain(now)
    del then["model"]["solve_head"]  # did not exist
    then["optim"]["weight_decay"] = 0.07
    with Recording(tmp_path, then, overrides):
        pass
    assert as_begun(now, tmp_path, overrides).optim.weight_decay == 0.05, "0.07 was never a default"
    with pytest.raises(UserError, match="another configuration"):
        imgcls.fit(now)
    monkeypatch.setitem(EARLIER, "optim.weight_decay", Earlier((0.07,)))
    begun = as_begun(now, tmp_path, overrides)
    assert (begun.optim.weight_decay, begun.model.solve_head) == (0.07, False)
    assert as_begun(now, tmp_path, [*overrides, "optim.lr=1"]).optim.weight_decay == 0.05, "another command"
    with Recording(tmp_path, plain(begun), overrides):
        pass  # is resumed
