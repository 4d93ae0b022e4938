from __future__ import annotations

import io
import json
import logging
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from imgcls import portable
from imgcls.cli import guarded, parse_arguments
from imgcls.errors import UserError
from imgcls.system.interrupts import Interrupted
from imgcls.system.logs import talking
from imgcls.train import main as train_main


def run_folder(folder: Path) -> Path:
    """A run folder with nothing but an exported model of three classes."""
    from imgcls.models.backbones import create_network
    from imgcls.preprocessing import Preprocessing

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
    ("error", "code"), [(UserError("wrong"), 2), (Interrupted(15), 143), (Interrupted(2), 130), (ValueError("bug"), 1)]
)
def test_exit_codes_tell_what_happened(error: Exception, code: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert guarded(lambda: fail(error)) == code
    said = capsys.readouterr().err
    assert ("Traceback" in said) == (code == 1)


def test_words_are_split_into_options_overrides_and_the_rest() -> None:
    options, overrides, rest = parse_arguments(
        ["run=x", "data.root=y", "a b=c.jpg", "picture.jpg"], {"run": "", "top_k": "5"}, usage="", overrides=("data",)
    )
    assert options == {"run": "x", "top_k": "5"}
    assert overrides == ["data.root=y"]
    assert rest == ["a b=c.jpg", "picture.jpg"]
    with pytest.raises(UserError, match="run"):
        parse_arguments(["rum=x"], {"run": ""}, usage="")


def test_predict_answers_for_every_picture_that_is_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from imgcls.predict import predict

    run = run_folder(tmp_path / "run")
    pictures = tmp_path / "pictures with spaces"
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


def test_a_command_says_its_own_words_only(capsys: pytest.CaptureFixture[str]) -> None:
    said = io.StringIO()
    theirs = logging.getLogger("lightning.pytorch")
    handler = logging.StreamHandler(said)
    theirs.addHandler(handler)
    level = theirs.level
    theirs.setLevel(logging.INFO)
    try:
        with talking():
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
