"""A folder of wheels for jobs without network."""

from __future__ import annotations

import importlib.metadata as metadata
from pathlib import Path
from types import SimpleNamespace

import pytest

from imgcls.errors import UserError
from imgcls.launch.sagemaker import wheels
from imgcls.launch.sagemaker.wheels import build_wheels, check_wheels, image_python, pins

NEWEST = "x/pytorch:2.14-cpu-amzn2023-sagemaker"


def test_everything_that_is_needed_is_pinned_without_torch() -> None:
    found = pins(["hydra-core>=1.3", "torchmetrics  # with torch", "nowhere-at-all>=2"], (3, 12))
    names = {line.partition("==")[0].partition(">")[0] for line in found}
    assert {"hydra-core", "omegaconf", "antlr4-python3-runtime", "numpy", "nowhere-at-all"} <= names
    assert not [name for name in names if name.startswith(("torch==", "nvidia", "triton"))]
    assert "torch" not in names


def test_what_is_needed_is_what_the_image_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    """This machine may have another Python and another system."""
    needs = ["ours; python_version >= '3.13' and sys_platform == 'linux'", "theirs; sys_platform == 'darwin'"]
    installed = {"main": SimpleNamespace(version="1+local", requires=needs)}

    def distribution(name: str) -> SimpleNamespace:
        if name not in installed:
            raise metadata.PackageNotFoundError(name)
        return installed[name]

    monkeypatch.setattr(wheels.metadata, "distribution", distribution)
    assert pins(["main"], (3, 13)) == ["main==1", "ours"]
    assert pins(["main"], (3, 12)) == ["main==1"]


def test_pip_is_asked_for_the_images_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, ...]] = []
    monkeypatch.setattr(wheels, "_pip", lambda *arguments: asked.append(arguments))
    build_wheels(tmp_path / "w", ["hydra-core"], image_python(NEWEST) or (0, 0))
    download, built = asked
    assert download[0] == "download"
    assert download[download.index("--python-version") + 1] == "3.12"
    assert built[0] == "wheel", "the index has its source alone"
    assert built[-1].startswith("antlr4-python3-runtime==4.9")


def test_wheels_must_be_there_and_for_the_images_python(tmp_path: Path) -> None:
    def folder(*names: str) -> Path:
        made = tmp_path / str(len(list(tmp_path.iterdir())))
        made.mkdir()
        for name in names:
            (made / f"{name}.whl").touch()
        return made

    lines = ["nowhere-at-all==2"]
    for tag in (
        "py3-none-any",
        "cp312-cp312-manylinux_2_17_x86_64.manylinux2014_x86_64",
        "cp310-abi3-manylinux2014_x86_64",
    ):
        check_wheels(folder(f"nowhere_at_all-2-{tag}"), lines, NEWEST)
    for tag in (
        "cp311-cp311-manylinux2014_x86_64",
        "cp312-cp312-macosx_11_0_arm64",
        "cp313-cp313-manylinux2014_x86_64",
    ):
        with pytest.raises(UserError, match=r"which is not for Python 3\.12 of the image\. .*imgcls\.jobs wheels"):
            check_wheels(folder(f"nowhere_at_all-2-{tag}"), lines, NEWEST)
    with pytest.raises(UserError, match=r"holds no wheel of nowhere-at-all==2"):
        check_wheels(folder("nowhere_at_all-1-py3-none-any"), lines, NEWEST)
    check_wheels(folder(), lines, "my/image:1")  # nobody knows what it has
