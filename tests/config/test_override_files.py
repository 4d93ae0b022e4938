"""Files of overrides stand for their words."""

from __future__ import annotations

from pathlib import Path

import pytest

from imgcls.config.composition import compose
from imgcls.config.override_files import expand
from imgcls.errors import UserError


def test_a_file_stands_for_its_words_and_later_words_win(tmp_path: Path) -> None:
    listed, named = tmp_path / "overrides.yaml", tmp_path / "best.yaml"
    listed.write_text("[data=digits, optim.lr=0.5]")
    named.write_text("# a note\noverrides:\n- optim.momentum=0.7\n- optim=sgd\ntrial: 3\n")
    assert expand([str(listed), "seed=1"]) == ["data=digits", "optim.lr=0.5", "seed=1"]
    cfg = compose([str(listed), str(named), "optim.lr=0.25"])
    assert (cfg.optim.lr, cfg.optim.momentum) == (0.25, 0.7)


def test_names_of_hydras_own_options_are_no_files() -> None:
    words = ["--config-name", "train.yaml", "data.root=pictures.yaml", "-m"]
    assert expand(words) == words


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (None, "no such file"),
        ("optim: {lr: 0.1}", "holds no overrides"),
        ("[1, 2]", "holds no overrides"),
        ("[", "read"),
    ],
)
def test_what_is_no_such_file_is_explained(tmp_path: Path, content: str | None, complaint: str) -> None:
    file = tmp_path / "best.yaml"
    if content is not None:
        file.write_text(content)
    with pytest.raises(UserError, match=complaint):
        compose([str(file)])
