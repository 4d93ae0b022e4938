import json
import re
import sys
import tarfile
from pathlib import Path

import pytest

from imgcls.config.composition import compose, plain
from imgcls.errors import UserError
from imgcls.launch.sagemaker.bundle import (
    find_user_modules,
    optional_requirements,
    read_requirements,
    requirements_text,
    write_bundle,
)


def test_the_bundle_holds_what_the_container_needs(tmp_path: Path) -> None:
    job = {"config": {"a.b": "quotes \" and ' and $(echo x) é"}, "overrides": ["x=1"]}
    own = tmp_path / "flowers.py"
    own.write_text("x = 1")
    for number in (1, 2):
        write_bundle(tmp_path / f"{number}.tar.gz", job, code=[own], requirements="timm\n", wheels=None)
    assert (tmp_path / "1.tar.gz").read_bytes() == (tmp_path / "2.tar.gz").read_bytes()
    with tarfile.open(tmp_path / "1.tar.gz") as tar:
        names = tar.getnames()
        tar.extractall(tmp_path / "out", filter="data")
    out = tmp_path / "out"
    assert json.loads((out / "job.json").read_text()) == job
    assert {"imgcls/__init__.py", "imgcls/conf/train.yaml", "imgcls/report/report.html.j2", "flowers.py"} <= set(names)
    assert not [name for name in names if "__pycache__" in name or "tests" in name or name.startswith("/")]
    assert (out / "requirements.txt").read_text() == "timm\n"


def test_the_users_own_modules_come_along(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "own_flowers.py").write_text("")
    (tmp_path / "own_package").mkdir()
    (tmp_path / "own_package" / "__init__.py").write_text("")
    (tmp_path / "extra").mkdir()
    config = {
        "data": {"_target_": "own_flowers.Flowers", "augment": {"list": [{"_target_": "own_package.Jitter"}]}},
        "trainer": {"_target_": "lightning.Trainer"},
        "other": {"_target_": "collections.OrderedDict"},
    }
    found = find_user_modules(config, ["extra"])
    assert [path.name for path in found] == ["own_flowers.py", "own_package", "extra"]
    assert find_user_modules(plain(compose(["data=digits"]))) == []
    with pytest.raises(UserError, match="names the module 'nowhere_at_all'"):
        find_user_modules({"_target_": "nowhere_at_all.X"})
    assert find_user_modules([{"search": {"sampler": {"_target_": "nowhere_at_all.X"}}}]) == []
    with pytest.raises(UserError, match=r"launch\.code: missing does not exist"):
        find_user_modules({}, ["missing"])
    for name in ("own_flowers", "own_package"):
        sys.modules.pop(name, None)


def test_requirements_are_pinned_to_what_was_tried_here(tmp_path: Path) -> None:
    import timm

    own = tmp_path / "more.txt"
    own.write_text("albumentations>=2\n\n")
    lines = requirements_text(str(own)).splitlines()
    assert f"timm=={timm.__version__}" in lines
    assert not [line for line in lines if line.startswith("torch") and not line.startswith("torchmetrics")]
    assert lines[-1] == "albumentations>=2"
    with pytest.raises(UserError, match="no such file"):
        requirements_text(str(tmp_path / "none.txt"))


def test_what_the_configuration_needs_travels(monkeypatch: pytest.MonkeyPatch) -> None:
    def names(onnx: object, logger: str | None = None, kind: str = "ml.m5.xlarge") -> set[str]:
        lines = optional_requirements([{"export": {"onnx": onnx}, "logger": {"_target_": logger}}], kind)
        return {re.split("[^a-z-]", line)[0] for line in lines}

    assert names(False) == set()
    assert names(False, kind="ml.g4dn.xlarge") == {"nvidia-ml-py"}
    assert names(True) == {"onnx", "onnxscript", "onnxruntime"}
    assert names(False, "imgcls.training.loggers.MLflow") == {"mlflow-skinny", "sqlalchemy", "alembic"}
    assert names(False, "imgcls.training.loggers.WeightsAndBiases") == {"wandb"}
    lora = optional_requirements([{"model": {"adapter": "lora"}}], "ml.m5.xlarge")
    assert [line.partition("==")[0] for line in lora] == ["peft"]
    monkeypatch.setattr("imgcls.launch.sagemaker.bundle.importlib.util.find_spec", lambda name: object())
    tiff = optional_requirements([{"data": {"root": "scans"}}], "ml.m5.xlarge")
    assert [re.split("[=>]", line)[0] for line in tiff] == ["tifffile"]
    data = {"_target_": "imgcls.data.huggingface.HuggingFace"}
    for needs, package in [(data, "datasets"), ({"table": "a/labels.parquet"}, "pyarrow"), ({"table": "a.csv"}, "")]:
        lines = optional_requirements([{"data": needs}], "ml.m5.xlarge")
        assert [line.partition("==")[0] for line in lines] == [package] * bool(package)
    for found, expected in [(None, set()), (object(), {"onnx", "onnxscript", "onnxruntime"})]:
        monkeypatch.setattr("imgcls.launch.sagemaker.bundle.importlib.util.find_spec", lambda name, at=found: at)
        assert names("auto") == expected, "auto means the same as here"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("torch>=2.12", "would replace the image's"),
        ("torchvision", "would replace the image's"),
        ("-e .", "is on this machine"),
        ("./own", "is on this machine"),
        ("own @ file:///home/me/own", "is on this machine"),
        ("-r base.txt", "names another file"),
        ("numpy==2.1.0+local", "is a build of this machine"),
    ],
)
def test_requirements_that_work_here_alone_are_refused(tmp_path: Path, line: str, said: str) -> None:
    own = tmp_path / "more.txt"
    own.write_text(f"albumentations>=2  # augmentation\n{line}\n")
    with pytest.raises(UserError, match=said):
        read_requirements(str(own))
