"""Files of overrides stand for their words."""

from __future__ import annotations

from pathlib import Path

import pytest

from imgcls.config.composition import compose
from imgcls.config.overrides import expand
from imgcls.errors import UserError


def test_a_file_stands_for_its_words_and_later_words_win(tmp_path: Path) -> None:
    listed, named = tmp_path / "overrides.yaml", tmp_path / "best.yaml"
    listed.write_text("[data=digits, optim.lr=0.5]")
    named.write_text("# a note\noverrides:\n- optim.momentum=0.7\n- optim=sgd\ntrial: 3\n")
    assert expand([str(listed), "seed=1"]) == ["data=digits", "optim.lr=0.5", "seed=1"]
    cfg = compose([str(listed), str(named), "optim.lr=0.25"])
    assert (cfg.optim.lr, cfg.optim.momentum) == (0.25, 0.7)


def test_names_of_hydras_own_options_are_no_files() -> None:
    words = ["--config-name", "train.yaml", "run_dir=pictures.yaml", "-m"]
    assert expand(words) == words


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (None, "no such file"),
        ("optim: {lr: 0.1}", "contains no overrides"),
        ("[1, 2]", "contains no overrides"),
        ("[", "read"),
    ],
)
def test_what_is_no_such_file_is_explained(tmp_path: Path, content: str | None, complaint: str) -> None:
    file = tmp_path / "best.yaml"
    if content is not None:
        file.write_text(content)
    with pytest.raises(UserError, match=complaint):
        compose([str(file)])


def test_a_folder_given_as_data_is_the_users_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "photos").mkdir()
    monkeypatch.chdir(tmp_path)
    assert expand(["data=photos", "seed=1"]) == ["data=imagefolder", "data.root=photos", "seed=1"]
    assert expand(["data.root=photos"]) == ["data.root=photos", "data=imagefolder"]
    assert expand(["data=s3://bucket/photos"]) == ["data=imagefolder", "data.root=s3://bucket/photos"]
    assert expand(["data=caltech256", "data.root=photos"]) == ["data=caltech256", "data.root=photos"]
    assert expand(["experiment=bin_counts", "data.root=photos"]) == ["experiment=bin_counts", "data.root=photos"]
    with pytest.raises(UserError, match=r"data=\./fotos: no such folder"):
        expand(["data=./fotos"])
    (tmp_path / "digits").mkdir()
    assert expand(["data=digits"]) == ["data=digits"], "the name of a data set is not a folder"


@pytest.mark.parametrize(
    "value", ["~/data", "größe", "Bilder (1)", "a=b", "it's", "50% [new]", 'say "x"', r"(a\d+)_", 'b\\"(', "(c\\"]
)
def test_values_that_hydra_refuses_are_quoted(value: str) -> None:
    cfg = compose([f"run_dir={value}"])
    assert cfg.run_dir == value


def test_what_hydra_reads_stays_as_it_is() -> None:
    overrides = ["optim.lr=1e-3", "model=resnet18,resnet50", "optim.lr=tag(log,interval(1e-3,1e-1))", "--cfg", "-m"]
    assert expand(overrides) == overrides


def test_a_file_of_overrides_in_a_folder_with_an_equals_sign(tmp_path: Path) -> None:
    file = tmp_path / "x=1" / "overrides.yaml"
    file.parent.mkdir()
    file.write_text("[seed=3]")
    assert expand([str(file)]) == ["seed=3"]


@pytest.mark.parametrize("name", ["digits", "synthetic"])
def test_a_data_set_without_files_refuses_a_root(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"data={name} reads no files"):
        compose([f"data={name}", f"data.root={tmp_path}"])
