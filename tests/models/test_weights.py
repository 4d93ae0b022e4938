"""Weights from every kind of file, and one clear line if they do not fit."""

import argparse
import functools
import json
import logging
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file

from imgcls.errors import UserError
from imgcls.models.backbones import create_network
from imgcls.models.network import Network
from imgcls.models.weights import load_weights

from .helpers import CLASSES, classifier, network, trainer


def same(first: torch.nn.Module, second: torch.nn.Module) -> bool:
    state, other = first.state_dict(), second.state_dict()
    return state.keys() == other.keys() and all(torch.equal(state[name], other[name]) for name in state)


@pytest.fixture
def source() -> Network:
    return network(seed=1)


PREFIXES = ("", "module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.", "network.", "net.", "model.net.")


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("wrapper", [None, "state_dict", "model"])
def test_state_dictionaries_with_every_prefix_and_wrapper(
    source: Network, tmp_path: Path, prefix: str, wrapper: str | None
) -> None:
    state: dict[str, Any] = {f"{prefix}{name}": value for name, value in source.state_dict().items()}
    torch.save({wrapper: state, "epoch": 3} if wrapper else state, tmp_path / "w.pth")
    assert same(create_network("test_resnet", CLASSES, weights=tmp_path / "w.pth"), source)


def test_safetensors_and_the_folder_of_a_run(source: Network, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    save_file(source.state_dict(), tmp_path / "model/model.safetensors")
    assert same(create_network("test_resnet", CLASSES, weights=tmp_path / "model/model.safetensors"), source)
    assert same(create_network("test_resnet", CLASSES, weights=tmp_path), source)


def test_the_best_checkpoint_of_a_run_without_an_exported_model(tmp_path: Path) -> None:
    module = classifier(seed=1)
    quiet = trainer()
    quiet.strategy.connect(module)
    quiet.save_checkpoint(tmp_path / "checkpoints/best.ckpt", weights_only=True)
    assert same(create_network("test_resnet", CLASSES, weights=tmp_path), module.network)


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_convnext"])
def test_timms_own_checkpoints_without_their_classifier(tmp_path: Path, caplog: Any, prefix: str, name: str) -> None:
    theirs = timm.create_model(name, num_classes=10)
    torch.save(
        {"state_dict": {f"{prefix}{key}": value for key, value in theirs.state_dict().items()}}, tmp_path / "w.pth"
    )
    with caplog.at_level(logging.INFO):
        ours = create_network(name, CLASSES, weights=tmp_path / "w.pth")
    assert "only the backbone is loaded" in caplog.text
    theirs.reset_classifier(0)
    assert same(ours.backbone, theirs)


PREFIXES_OF_OTHERS = ("net.", "timm_model.", "model_ema.module.", "encoder_q.", "model.timm_model._orig_mod.")


@pytest.mark.parametrize("prefix", PREFIXES_OF_OTHERS)
@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
def test_timms_names_below_the_attributes_of_other_trainings(tmp_path: Path, prefix: str, name: str) -> None:
    theirs = timm.create_model(name, num_classes=10)
    torch.save({f"{prefix}{key}": value for key, value in theirs.state_dict().items()}, tmp_path / "w.pth")
    ours = create_network(name, CLASSES, weights=tmp_path / "w.pth")
    theirs.reset_classifier(0)
    assert same(ours.backbone, theirs)


def test_the_checkpoints_of_timms_train_script(tmp_path: Path) -> None:
    from timm.utils import CheckpointSaver, ModelEmaV3

    theirs = timm.create_model("test_resnet", num_classes=10)
    ema = ModelEmaV3(theirs)
    with torch.no_grad():
        theirs.bn1.weight.add_(1.0)
    saver = CheckpointSaver(
        theirs,
        torch.optim.SGD(theirs.parameters(), lr=0.1, momentum=0.9),
        argparse.Namespace(model="test_resnet", data_dir=Path("/data")),
        model_ema=ema,
        checkpoint_dir=str(tmp_path),
        recovery_dir=str(tmp_path),
        max_history=1,
    )
    saver.save_checkpoint(3, metric=np.float64(71.5))
    ours = create_network("test_resnet", CLASSES, weights=tmp_path / "model_best.pth.tar")
    ema.module.reset_classifier(0)
    assert same(ours.backbone, ema.module)


def test_an_averaged_model_of_torch(source: Network, tmp_path: Path, caplog: Any) -> None:
    torch.save(torch.optim.swa_utils.AveragedModel(source).state_dict(), tmp_path / "w.pth")
    with caplog.at_level(logging.INFO):
        ours = create_network("test_resnet", CLASSES, weights=tmp_path / "w.pth")
    assert same(ours, source)
    assert "(module.backbone): backbone and head are loaded; left out: n_averaged (1 tensor)." in caplog.text


def test_a_checkpoint_of_lightning_with_more_than_the_network(tmp_path: Path, caplog: Any) -> None:
    theirs = timm.create_model("test_resnet", num_classes=10)
    state = {f"model.{key}": value for key, value in theirs.state_dict().items()}
    state |= {
        "criterion.weight": torch.ones(10),
        "val_accuracy.tp": torch.zeros(10),
        "val_accuracy.fp": torch.zeros(10),
    }
    hyperparameters = {"optimizer": functools.partial(torch.optim.AdamW, lr=0.1), "path": Path("x"), "width": 3}
    torch.save({"epoch": 1, "state_dict": state, "hyper_parameters": hyperparameters}, tmp_path / "w.ckpt")
    with caplog.at_level(logging.INFO):
        ours = create_network("test_resnet", CLASSES, weights=tmp_path / "w.ckpt")
    theirs.reset_classifier(0)
    assert same(ours.backbone, theirs)
    line = caplog.messages[-1]
    assert "(state_dict.model): only the backbone is loaded; the head is new; left out: " in line
    assert all(part in line for part in ("fc (2 tensors)", "accuracy (2 tensors)", "criterion (1 tensor)"))


def test_a_whole_module_is_read_without_running_its_code(tmp_path: Path) -> None:
    theirs = timm.create_model("test_resnet", num_classes=10)
    torch.save(theirs, tmp_path / "w.pth")
    ours = create_network("test_resnet", CLASSES, weights=tmp_path / "w.pth")
    theirs.reset_classifier(0)
    assert same(ours.backbone, theirs)


def test_the_format_of_torch_before_1_6(source: Network, tmp_path: Path) -> None:
    torch.save(source.state_dict(), tmp_path / "w.pth", _use_new_zipfile_serialization=False)
    assert same(create_network("test_resnet", CLASSES, weights=tmp_path / "w.pth"), source)


@pytest.mark.parametrize("names", [["a", "b", "c"], ["a", "c", "b"], None])
@pytest.mark.parametrize("stored", ["metadata", "model.json", "data.json", "nowhere"])
def test_the_head_is_for_the_classes_that_it_was_trained_for(
    tmp_path: Path, caplog: Any, names: list[str] | None, stored: str
) -> None:
    other = network(num_classes=3, seed=1)
    folder = tmp_path / "model"
    folder.mkdir()
    description = json.dumps({"class_names": ["a", "b", "c"]})
    metadata = {"class_names": json.dumps(["a", "b", "c"])} if stored == "metadata" else None
    save_file(other.state_dict(), folder / "model.safetensors", metadata=metadata)
    if stored.endswith(".json"):
        ({"model.json": folder, "data.json": tmp_path}[stored] / stored).write_text(description)
    with caplog.at_level(logging.INFO):
        ours = create_network("test_resnet", 3, weights=tmp_path, class_names=names)
    assert same(ours.backbone, other.backbone)
    is_other = names == ["a", "c", "b"] and stored != "nowhere"
    assert same(ours.head, other.head) is not is_other
    assert ("the head was for other classes ('b' was class 1, now 'c')" in caplog.text) is is_other


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["float16", "bfloat16", "float64", "sparse", "quantised"])
def test_other_kinds_of_tensors(tmp_path: Path, source: Network, kind: str) -> None:
    def convert(value: torch.Tensor) -> torch.Tensor:
        if not value.is_floating_point():
            return value
        if kind == "sparse":
            return value.to_sparse()
        if kind == "quantised":
            return torch.quantize_per_tensor(value, 0.01, 0, torch.qint32)
        return value.to(getattr(torch, kind))

    torch.save({name: convert(value) for name, value in source.state_dict().items()}, tmp_path / "w.pth")
    ours = create_network("test_resnet", CLASSES, weights=tmp_path / "w.pth")
    for name, value in ours.state_dict().items():
        torch.testing.assert_close(value, source.state_dict()[name], rtol=0.01, atol=0.006)


@pytest.mark.parametrize(("kind", "message"), [("nan", "is not finite"), ("meta", "no state dictionary")])
def test_weights_without_values_are_refused(tmp_path: Path, source: Network, kind: str, message: str) -> None:
    before = source.state_dict()
    state = {name: value * float("nan") if kind == "nan" else value.to("meta") for name, value in before.items()}
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(UserError, match=message):
        load_weights(source, tmp_path / "w.pth")


def test_a_deeper_network_of_the_family_is_refused(tmp_path: Path) -> None:
    torch.save(timm.create_model("resnet34").state_dict(), tmp_path / "w.pth")
    with pytest.raises(UserError, match="another architecture than resnet18"):
        create_network("resnet18", CLASSES, weights=tmp_path / "w.pth")


def test_the_average_of_a_timm_training_is_preferred(source: Network, tmp_path: Path) -> None:
    torch.save({"state_dict": network(seed=2).state_dict(), "state_dict_ema": source.state_dict()}, tmp_path / "w.pth")
    assert same(create_network("test_resnet", CLASSES, weights=tmp_path / "w.pth"), source)


def test_a_head_of_another_size_is_skipped_and_logged(tmp_path: Path, caplog: Any) -> None:
    other = network(num_classes=3, seed=1)
    torch.save(other.state_dict(), tmp_path / "w.pt")
    with caplog.at_level(logging.INFO):
        ours = create_network("test_resnet", CLASSES, weights=tmp_path / "w.pt")
    assert "the head is new" in caplog.text
    assert same(ours.backbone, other.backbone)


def test_position_embeddings_fit_another_image_size(tmp_path: Path) -> None:
    torch.save(timm.create_model("test_vit").state_dict(), tmp_path / "w.pth")
    ours = create_network("test_vit", CLASSES, image_size=64, weights=tmp_path / "w.pth")
    assert ours(torch.zeros(1, 3, 64, 64)).shape == (1, CLASSES)


def test_a_standard_stem_is_not_loaded_into_a_small_one(tmp_path: Path, caplog: Any) -> None:
    theirs = create_network("resnet18", 2)
    torch.save(theirs.state_dict(), tmp_path / "w.pth")
    with caplog.at_level(logging.INFO):
        ours = create_network("resnet18", 2, stem="small", weights=tmp_path / "w.pth")
    assert "first convolution has no small stem" in caplog.text
    assert same(ours.backbone.layer1, theirs.backbone.layer1)
    torch.save(ours.state_dict(), tmp_path / "small.pth")
    assert same(create_network("resnet18", 2, stem="small", weights=tmp_path / "small.pth"), ours)


@pytest.mark.parametrize("name", ["test_vit", "test_efficientnet", "resnet10t"])
def test_another_architecture_is_refused_in_a_line(source: Network, tmp_path: Path, name: str) -> None:
    torch.save(source.state_dict(), tmp_path / "w.pth")
    with pytest.raises(UserError, match=f"another architecture than {name}") as raised:
        create_network(name, CLASSES, weights=tmp_path / "w.pth")
    assert len(str(raised.value).splitlines()) <= 2
    assert len(str(raised.value)) < 400


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("executed",)


def test_nothing_is_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": Evil()}, tmp_path / "w.pth")
    with pytest.raises(UserError, match="never executes"):
        load_weights(network(), tmp_path / "w.pth")
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("suffix", [".pth", ".ckpt", ".safetensors"])
def test_damaged_and_missing_files_are_refused(source: Network, tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"w{suffix}"
    with pytest.raises(UserError, match="no such file"):
        load_weights(source, file)
    (save_file if suffix == ".safetensors" else torch.save)(source.state_dict(), file)
    whole = file.read_bytes()
    for content in (whole[: len(whole) // 2], b"", b"<html>not found</html>"):
        file.write_bytes(content)
        with pytest.raises(UserError, match=r"model\.weights=.*w\."):
            load_weights(source, file)


@pytest.mark.parametrize("content", [{}, [1, 2], {"state_dict": {"epoch": 1}}, torch.zeros(2)])
def test_a_file_without_weights_is_refused(source: Network, tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(UserError, match="no state dictionary"):
        load_weights(source, tmp_path / "w.pth")


def test_an_empty_folder_is_refused(source: Network, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="neither an exported model nor a best checkpoint"):
        load_weights(source, tmp_path)
