from __future__ import annotations

import errno
import functools
import io
import json
import logging
import os
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import imgcls
from imgcls import portable
from imgcls.cli import Option, announce, boolean, guarded, read_options, texts, usage_of
from imgcls.config.command_line import run_hydra
from imgcls.errors import UserError
from imgcls.system.checks import choice, flag, number, whole
from imgcls.system.interrupts import Interrupted
from imgcls.system.logs import log_to_terminal
from imgcls.train import main as train_main


def run_folder(folder: Path) -> Path:
    """A run folder with nothing but an exported model of three classes."""
    from imgcls.images.preprocessing import Preprocessing
    from imgcls.models.backbones import create_network

    folder.mkdir()
    (folder / "config.yaml").write_text("{}")
    portable.export(
        create_network("test_resnet", 3),
        preprocessing=Preprocessing(24, 24),
        class_names=["cat", "dog", "owl"],
        metrics={},
        folder=folder / "model",
        onnx=False,
    )
    return folder


def fail(error: Exception) -> None:
    raise error


@pytest.mark.parametrize(
    ("error", "code"), [(UserError("wrong"), 2), (Interrupted(15), 143), (Interrupted(2), 130), (ValueError("mine"), 2)]
)
def test_exit_codes_tell_what_happened(error: Exception, code: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert guarded(lambda: fail(error)) == code
    said = capsys.readouterr().err
    assert ("Traceback" in said) == isinstance(error, ValueError)


def test_an_error_in_the_users_code_is_theirs_and_another_one_a_bug(capsys: pytest.CaptureFixture[str]) -> None:
    guarded(lambda: fail(ValueError("mine")))
    said = capsys.readouterr().err
    assert f"ValueError in your own code: {__file__}, line" in said
    assert "cli.py" not in said.replace("test_cli.py", "")
    assert "bug in imgcls" not in said
    assert guarded(functools.partial(json.loads, "{")) == 1
    said = capsys.readouterr().err
    assert "bug in imgcls" in said
    assert "cli.py" in said


def test_output_that_cannot_be_written_is_an_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Full(io.StringIO):
        def flush(self) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(sys, "stdout", Full())
        assert guarded(lambda: print("answer")) == UserError.exit_code
    assert "No space left" in capsys.readouterr().err


OPTIONS = {
    "run": Option(),
    "most": Option(5, whole(1), int),
    "poll": Option(10.0, number(0, open_low=True), float),
    "wait": Option(True, flag, boolean),
    "onnx": Option("auto", choice("auto", True, False), boolean),
    "alarms": Option((), parse=texts),
}


def test_arguments_are_options_overrides_and_others() -> None:
    options, overrides, others = read_options(
        ["run=x", "data.root=y", "a b=c.jpg", "picture.jpg"], OPTIONS, usage="", overrides=("data",), others=None
    )
    assert (options["run"], options["most"]) == ("x", 5)
    assert overrides == ["data.root=y"]
    assert others == ["a b=c.jpg", "picture.jpg"]


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("run=007", "007"),
        ("run=a=b", "a=b"),
        ("run=", None),
        ("most=20", 20),
        ("most=", 5),
        ("poll=2", 2.0),
        ("poll=.5", 0.5),
        ("wait=False", False),
        ("onnx=auto", "auto"),
        ("onnx=true", True),
        ("alarms=[a, b]", ["a", "b"]),
        ("alarms=a", ["a"]),
    ],
)
def test_a_text_becomes_a_value_of_its_options_type(argument: str, value: object) -> None:
    options, _, _ = read_options([argument], OPTIONS, usage="")
    read = options[argument.partition("=")[0]]
    assert (read, type(read)) == (value, type(value))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["rum=x"], "Unknown option 'rum'. Did you mean run?"),
        (["--most"], "Unknown option '--most'. Options are given as name=value: run, most"),
        (["most=abc"], "most=abc: must be a whole number of at least 1."),
        (["most=1.5"], "most=1.5: must be a whole number of at least 1."),
        (["most=0"], "most=0: must be a whole number of at least 1."),
        (["poll=nan"], "poll=nan: must be a number above 0."),
        (["wait=yes"], "wait=yes: must be true or false."),
        (["onnx=maybe"], "onnx=maybe: is not known. Choose one of: auto, false, true."),
        (["list", "more"], "Unexpected argument 'more'."),
    ],
)
def test_what_cannot_be_right_is_said_of_the_option(arguments: list[str], message: str) -> None:
    with pytest.raises(UserError) as caught:
        read_options(arguments, OPTIONS, usage="", others=1)
    assert str(caught.value).startswith(message)


def test_a_command_without_options_takes_no_arguments(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match="Unexpected argument '--all'"):
        read_options(["--all"], {}, usage="")
    with pytest.raises(SystemExit):
        read_options(["more", "--help"], {}, usage="usage: python -m imgcls.doctor")
    assert capsys.readouterr().out == "usage: python -m imgcls.doctor\n"


def test_the_usage_of_an_action_has_its_options_alone() -> None:
    usage = "usage: python -m imgcls.jobs [list]   all\n   python -m imgcls.jobs stop   job=NAME    end a job\n"
    assert usage_of("stop", usage, {"job": Option(), "wait": Option(False), "poll": Option(10.0)}) == (
        "usage: python -m imgcls.jobs stop   job=NAME    end a job\n\noptions: job wait=false poll=10.0"
    )


def test_the_first_line_of_a_command_is_for_terminals(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    announce("loading PyTorch")
    assert capsys.readouterr().err == ""
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    announce("loading PyTorch")
    assert capsys.readouterr().err == f"imgcls {imgcls.__version__}: loading PyTorch …\n"


def test_predict_answers_for_every_picture_that_is_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from imgcls.predict import predict

    run = run_folder(tmp_path / "run")
    pictures = tmp_path / "images with spaces"
    pictures.mkdir()
    Image.fromarray(np.zeros((30, 20), dtype=np.uint8)).save(pictures / "grey.PNG")
    Image.new("RGBA", (10, 40)).save(pictures / "alpha.png")
    (pictures / "broken.jpg").write_bytes(b"no picture")
    assert guarded(lambda: predict([f"run={run}", "format=jsonl", "top_k=2", str(pictures)])) == 1
    out, err = capsys.readouterr()
    answers = [json.loads(line) for line in out.splitlines()]
    assert [Path(answer["file"]).name for answer in answers] == ["alpha.png", "grey.PNG"]
    assert all(len(answer["classes"]) == 2 for answer in answers)
    assert "broken.jpg" in err
    assert "1 of 3" in err


def test_predict_finds_the_images_that_training_finds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from imgcls.predict import predict

    run = run_folder(tmp_path / "run")
    image = Image.new("RGB", (10, 10))
    names = ["a.jpg", "sub/deep/c d,e.jpeg", "epoch=3.jpg", os.fsdecode(b"caf\xe9.jpg")]
    names += ["._a.jpg", ".ipynb_checkpoints/a-checkpoint.jpg", "__MACOSX/a.jpg", "photos.jpg/b.jpg"]
    for name in names:
        file = tmp_path / "photos" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        image.save(file, "JPEG")
    (tmp_path / "elsewhere").mkdir()
    image.save(tmp_path / "elsewhere" / "linked.jpg")
    (tmp_path / "photos" / "link").symlink_to(tmp_path / "elsewhere")
    image.save(tmp_path / "photos" / "IMG_1", "JPEG")
    assert guarded(lambda: predict([f"run={run}", "format=jsonl", str(tmp_path / "photos")])) == 0
    out, err = capsys.readouterr()
    assert "1 files are images" in err
    assert "IMG_1.jpg" in err
    found = [json.loads(line)["file"].partition("photos/")[2] for line in out.splitlines()]
    expected = ["a.jpg", "caf\\xe9.jpg", "epoch=3.jpg", "link/linked.jpg", "photos.jpg/b.jpg", "sub/deep/c d,e.jpeg"]
    assert sorted(found) == expected
    monkeypatch.chdir(tmp_path / "photos")
    assert guarded(lambda: predict([f"run={run}", "epoch=3.jpg"])) == 0


@pytest.mark.parametrize(
    "arguments",
    [["x.jpg"], ["run=nowhere", "x.jpg"], ["run=RUN"], ["run=RUN", "no.jpg"], ["run=RUN", "top_k=0", "x"], ["--bogus"]],
)
def test_predict_explains_what_is_missing(
    tmp_path: Path, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    from imgcls.predict import predict

    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("{}")
    words = [word.replace("RUN", str(tmp_path / "run")) for word in arguments]
    assert guarded(lambda: predict(words)) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) <= 2


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("--hlp", "unrecognized arguments: --hlp. Did you mean --help?"),
        ("--lr=1", "--lr=1: options are given as name=value, without dashes. Did you mean optim.lr?"),
        (
            "--batch-size",
            "--batch-size: options are given as name=value, without dashes. Did you mean data.batch_size?",
        ),
        ("--data", "--data: options are given as name=value, without dashes. Write data=…"),
        ("--optim.lr=1", "without dashes. Write optim.lr=…"),
        ("--resume=never", "without dashes. Write resume=…"),
        ("--epochs=3", "without dashes. The number of epochs is trainer.max_epochs."),
        ("--cfg=jobs", "--cfg/-c: invalid choice: 'jobs'"),
    ],
)
def test_a_flag_that_hydra_does_not_know_is_refused_in_one_line(
    word: str, message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["train", "model=resnet18", word])
    with pytest.raises(SystemExit) as ended:
        train_main()
    out, err = capsys.readouterr()
    assert (ended.value.code, out, err.count("\n")) == (2, "", 1)
    assert message in err


def test_a_full_disk_below_stdout_is_no_bug(capsys: pytest.CaptureFixture[str]) -> None:
    def fill() -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    assert guarded(fill) == 2
    assert capsys.readouterr().err.startswith("imgcls: error: No space left")


def test_a_training_whose_reader_has_gone_ends_in_silence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def print_into_a_closed_pipe(cfg: object) -> None:
        raise BrokenPipeError

    monkeypatch.setattr(sys, "argv", ["train", "data=synthetic", f"run_dir={tmp_path / 'run'}"])
    with pytest.raises(BrokenPipeError):
        run_hydra(print_into_a_closed_pipe)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("value", ["", "null", "5"])
def test_a_run_needs_a_folder(value: str) -> None:
    with pytest.raises(UserError, match=r"run_dir=.*must be the name of a folder"):
        imgcls.compose([f"run_dir={value}"])


def test_a_terminal_without_unicode_shows_escapes(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(shown, encoding="ascii", write_through=True))
    assert guarded(lambda: print("Käfer …")) == 0
    assert shown.getvalue() == b"K\\xe4fer \\u2026\n"


def test_a_run_that_begins_is_named_and_other_libraries_are_not_heard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    logging.getLogger("hydra._internal.core_plugins.basic_launcher").setLevel(logging.NOTSET)  # a search silences it
    monkeypatch.setattr(
        sys, "argv", ["train", "-m", "data=synthetic", "seed=3,4", f"hydra.sweep.dir={tmp_path / 'sweep'}"]
    )
    run_hydra(lambda cfg: logging.getLogger("matplotlib.font_manager").info("generated new fontManager"))
    out, err = capsys.readouterr()
    assert "fontManager" not in out + err
    assert [line.strip() for line in out.splitlines()] == [
        "Launching 2 jobs locally",
        "#0 : data=synthetic seed=3",
        "#1 : data=synthetic seed=4",
    ]


def test_a_command_says_its_own_words_only(capsys: pytest.CaptureFixture[str]) -> None:
    said = io.StringIO()
    theirs = logging.getLogger("lightning.pytorch")
    handler = logging.StreamHandler(said)
    theirs.addHandler(handler)
    level = theirs.level
    theirs.setLevel(logging.INFO)
    try:
        with log_to_terminal():
            logging.getLogger("imgcls.data").info("decoding")
            logging.getLogger("lightning.pytorch.utilities").warning("a tip")
            warnings.warn("deprecated", stacklevel=1)
        assert capsys.readouterr().err == "decoding\n"
        assert said.getvalue() == ""
        theirs.warning("again")
        assert said.getvalue() == "again\n"
    finally:
        theirs.removeHandler(handler)
        theirs.setLevel(level)
