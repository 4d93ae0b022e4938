"""Run folders and files of overrides of others: what they cannot do without the user's trust."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

import imgcls
from imgcls.config import config_dir, plain
from imgcls.config.trust import restore_configuration
from imgcls.errors import UserError
from imgcls.runs import Run

WRITE = {
    "_target_": "imgcls.system.files.atomic_write_text",
    "target": {"_target_": "pathlib.Path", "_args_": ["written"]},
    "content": "by a foreign run",
}
STORED: dict[str, Any] = {
    "seed": 3,
    "data": {"_target_": "imgcls.data.digits.Digits", "batch_size": 8, "augment": WRITE},
    "model": {
        "name": "test_resnet",
        "head": {"_target_": "imgcls.models.heads.Mlp", "hidden": [4]},
        "weights": "elsewhere.pth",
    },
    "optim": WRITE,
    "trainer": {"precision": "32-true", "profiler": WRITE, "max_epochs": 7},
    "callbacks": {"x": WRITE},
    "early_stopping": WRITE,
    "checkpoint": WRITE,
}


def changed(place: str, value: Any) -> dict[str, Any]:
    """STORED with another value in the dotted `place`."""
    content = yaml.safe_load(yaml.safe_dump(STORED))
    *sections, name = place.split(".")
    inner = content
    for section in sections:
        inner = inner.setdefault(section, {})
    inner[name] = value
    return content  # type: ignore[no-any-return]


def test_only_what_evaluation_depends_on_is_taken_from_a_stored_run() -> None:
    cfg = restore_configuration(STORED)
    assert (cfg.seed, cfg.data.batch_size, cfg.model.head.hidden, cfg.trainer.precision) == (3, 8, [4], "32-true")
    default = imgcls.compose()
    assert cfg.optim._target_ == default.optim._target_
    assert cfg.trainer._target_ == "lightning.Trainer"
    assert (cfg.trainer.profiler, cfg.callbacks, cfg.model.weights) == (None, {}, None)
    assert "augment" not in cfg.data
    assert "atomic_write_text" not in str(cfg)


@pytest.mark.parametrize(
    "place",
    [
        "data.root",
        "data.normalization",
        "data.more",
        "model.head",
        "model.options",
        "model.views",
        "model.name",
        "loss.focal_gamma",
        "trainer.precision",
        "trainer.accelerator",
        "seed",
    ],
)
@pytest.mark.parametrize("wrap", [lambda value: value, lambda value: [[value]], lambda value: {"a": value}])
def test_a_class_that_is_not_of_imgcls_needs_trust(place: str, wrap: Any) -> None:
    with pytest.raises(UserError, match="trust=true"):
        restore_configuration(changed(place, wrap(WRITE)))


@pytest.mark.parametrize(
    "target", ["imgcls.data.download.download", "imgcls.models.heads.Mlp", "os.system", "lightning.Trainer", ["x"]]
)
def test_a_data_set_is_one_of_the_registry(target: Any) -> None:
    with pytest.raises(UserError, match="trust=true"):
        restore_configuration(changed("data._target_", target))


NEEDED = {
    "prototype": ["model.pretrained=true"],
    "knn": ["model.pretrained=true"],
    "table": [f"data.root={Path(__file__).parent}", "data.table=labels.csv"],
    "huggingface": [f"data.root={Path(__file__).parent}"],
}


def test_every_own_data_set_and_head_needs_no_trust() -> None:
    groups = config_dir()
    for file in [*(groups / "data").glob("[!_]*.yaml"), *(groups / "head").glob("*.yaml")]:
        cfg = imgcls.compose([f"{file.parent.name}={file.stem}", *NEEDED.get(file.stem, [])])
        restored = restore_configuration(plain(cfg))
        assert restored.data._target_ == cfg.data._target_
        assert restored.model.head == cfg.model.head


def test_own_classes_are_used_with_trust() -> None:
    cfg = restore_configuration(changed("model.head", {"_target_": "mine.Head"}), trust=True)
    assert cfg.model.head._target_ == "mine.Head"


@pytest.mark.parametrize("slashes", ["", "\\", "\\\\", "\\\\\\"])
def test_no_interpolation_of_a_stored_run_is_resolved(
    slashes: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET_OF_THE_READER", "hunter2")
    text = f"{slashes}${{oc.env:SECRET_OF_THE_READER}}"
    cfg = restore_configuration(changed("data.on_bad", text), ["data.on_bad=skip"])
    assert cfg.data.on_bad == "skip"
    stored = changed("model.drop_rate", 0.0) | {"callbacks": {"x": [text]}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(stored))
    assert Run(tmp_path).config.callbacks.x[0] == text
    with pytest.raises(UserError) as refused:
        restore_configuration(changed("data.on_bad", text))
    assert "hunter2" not in str(refused.value)


@pytest.mark.parametrize(
    ("name", "address"),
    [
        ("url", "http://127.0.0.1:9/x.zip?${oc.env:HOME}"),
        ("url", "file:/etc/passwd"),
        ("root", "s3://their-bucket/x"),
    ],
)
def test_nothing_is_fetched_from_a_stored_address(name: str, address: str) -> None:
    stored = changed("data", {"_target_": "imgcls.data.dogbreeds.DogBreeds", "root": None, name: address})
    with pytest.raises(UserError, match=f"Give data.{name}=… again"):
        restore_configuration(stored)
    assert restore_configuration(stored, [f"data.{name}=null"]).data[name] is None
    assert restore_configuration(stored, trust=True).data[name] == address


@pytest.mark.parametrize("content", ["[]", "x", "", "a: [", "\x00"])
def test_a_damaged_configuration_is_a_line(content: str, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(content)
    with pytest.raises(UserError, match="damaged"):
        _ = Run(tmp_path).config


@pytest.mark.parametrize(
    "override",
    [
        "+callbacks.x._target_=imgcls.system.files.atomic_write_text",
        "+callbacks.x={_target_: os.system, command: ls}",
        "optim._target_=os.system",
        "data.url=http://their.server/x.zip",
        r"run_dir=x$\{oc.env:HOME\}",
        "run_dir=${oc.env:HOME}",
        "data.root=s3://their-bucket/x",
        r"data.root=s3\://their-bucket/x",
        "--config-dir=/their/folder",
        "-m",
        "hydra.searchpath=[/their/folder]",
        "+hydra.job.env_set.PATH=x",
        "++hydra/launcher=joblib",
        "launch.bucket=their-bucket",
        "data=../../their/folder/x",
        "+experiment=/their/x",
    ],
)
def test_a_file_of_overrides_only_sets_values(override: str, tmp_path: Path) -> None:
    file = tmp_path / "best.yaml"
    file.write_text(yaml.safe_dump({"overrides": ["optim.lr=0.5", override]}))
    with pytest.raises(UserError, match="trust=true"):
        imgcls.compose([str(file)])


def test_trusted_overrides_may_name_classes(tmp_path: Path) -> None:
    file = tmp_path / "overrides.yaml"
    file.write_text(yaml.safe_dump(["+callbacks.mine._target_=mine.Callback", "optim.lr=0.5"]))
    cfg = imgcls.compose([str(file), "trust=true"])
    assert (cfg.callbacks.mine._target_, cfg.optim.lr) == ("mine.Callback", 0.5)
