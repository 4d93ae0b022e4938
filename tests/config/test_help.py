"""What --help and the search for options print."""

from __future__ import annotations

from pathlib import Path

import pytest

from imgcls.config.help import find_options, help_of_train


def test_the_help_of_train_is_short_and_has_each_group_and_option_of_the_run() -> None:
    text = help_of_train(100)
    lines = text.splitlines()
    assert len(lines) < 75
    assert all(len(line) <= 100 for line in lines)
    assert "  optim=                      the optimiser and the schedule of its learning rate: adam," in text
    assert "  seed=0                      seed of all randomness" in text
    assert "_base" not in text
    assert "_cifar10" not in text


def test_options_are_found_by_name_by_description_and_by_group() -> None:
    text = find_options(["smoothing"], 100)
    assert "  loss.label_smoothing=${by_start:0.1,0.0,0.1}\n" in text
    assert "    share of the target" in text
    assert "data.batch_size" not in text
    assert "loss=default:" in text.splitlines()
    described = find_options(["epochs", "warm-up"], 100)
    assert "optim.warmup_epochs=1.0" in described
    assert "every optim=:" in described
    assert "optim.layer_decay" not in described
    group = find_options(["optim"], 100)
    assert "optim.layer_decay=1.0" in group
    assert "  optim.schedule=cosine       cosine, linear" in group
    assert find_options(["no such thing"]) == ""


def test_options_of_your_own_files_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "conf" / "data").mkdir(parents=True)
    (tmp_path / "conf" / "data" / "flowers.yaml").write_text("# Flowers.\npetals: 5 # how many petals\n")
    monkeypatch.chdir(tmp_path)
    assert find_options(["petals"], 80).splitlines() == [
        "data=flowers: Flowers.",
        "  data.petals=5               how many petals",
    ]
