"""Publishing a model on the hub, and loading it again: with imgcls and with timm."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch

import imgcls
import imgcls.push
from imgcls import portable
from imgcls.errors import UserError
from imgcls.images.preprocessing import Preprocessing
from imgcls.models.backbones import create_network
from imgcls.models.heads import Head, Linear, Mlp
from imgcls.models.network import Network
from tests.hub import Hub, local_hub
from tests.trainings import SMALL

NAMES = ("cat", "dog", "owl")
SHAPE = Preprocessing(image_size=24, resize=28, mean=(0.4, 0.5, 0.6), std=(0.2, 0.2, 0.3))
PIXELS = np.random.default_rng(0).integers(0, 256, (4, 24, 24, 3), dtype=np.uint8)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    with local_hub(monkeypatch, tmp_path / "hub") as server:
        yield server


def network(head: Head | None = None, **options: Any) -> Network:
    torch.manual_seed(0)
    made = create_network("test_resnet", len(NAMES), head=head or Linear(dropout=0.2), **options)
    made(torch.randn(16, 3, 24, 24))  # changes the batch-norm statistics
    return made


def export(folder: Path, head: Head | None = None, **options: Any) -> Path:
    metrics = {"test/accuracy": 0.5}
    portable.export(
        network(head), preprocessing=SHAPE, class_names=NAMES, metrics=metrics, folder=folder, onnx=False, **options
    )
    return folder


def command(*arguments: str) -> tuple[int, str, str]:
    """Exit code and output of `imgcls push`."""
    out, err = io.StringIO(), io.StringIO()
    before = sys.argv
    sys.argv = ["imgcls push", *arguments]
    try:
        with redirect_stdout(out), redirect_stderr(err), pytest.raises(SystemExit) as ended:
            imgcls.push.main()
    finally:
        sys.argv = before
    return int(str(ended.value.code)), out.getvalue(), err.getvalue()


def test_what_is_pushed_loads_in_timm_and_in_imgcls_with_the_same_logits(hub: Hub, tmp_path: Path) -> None:
    folder = export(tmp_path / "model")
    code, out, err = command(f"run={folder}", "repo=me/birds", "license=mit", "message=First birds")
    assert code == 0, err
    assert out.splitlines()[0] == f"{hub.address}/me/birds"
    assert hub.messages == ["First birds"]
    assert set(hub.files["me/birds"]) == {
        ".gitattributes",
        *("README.md", "config.json", "model.json", "model.safetensors"),
    }
    card = hub.files["me/birds"]["README.md"].decode()
    assert 'license: "mit"' in card
    assert 'library_name: "timm"' in card
    assert 'timm.create_model("hf-hub:me/birds", pretrained=True)' in card

    ours, local = portable.load("hf-hub:me/birds"), portable.load(folder)
    assert ours.description == {**local.description, "license": "mit"}
    assert np.array_equal(ours.probabilities(PIXELS), local.probabilities(PIXELS))

    theirs = timm.create_model("hf-hub:me/birds", pretrained=True).eval()
    images = torch.from_numpy(SHAPE.normalise(PIXELS))
    with torch.inference_mode():
        assert torch.allclose(theirs(images), local.network(images), atol=1e-5)
    assert theirs.pretrained_cfg["label_names"] == list(NAMES)
    prepared = timm.data.resolve_model_data_config(theirs)
    assert (list(prepared["input_size"]), tuple(prepared["mean"])) == ([3, 24, 24], SHAPE.mean)
    assert round(24 / prepared["crop_pct"]) == 28


def test_a_training_starts_from_the_hub_with_backbone_head_and_normalisation(
    hub: Hub, tmp_path: Path, pictures: Path
) -> None:
    folder = export(tmp_path / "model")
    imgcls.push.push(folder, "me/birds")
    options = [*SMALL, f"data.root={pictures}", "model.name=hf-hub:me/birds"]
    options.remove("model.name=test_resnet")
    options.remove("model.pretrained=false")
    cfg = imgcls.compose([*options, f"run_dir={tmp_path / 'run'}", "trainer.max_epochs=1"])
    assert cfg.model.name == "test_resnet"
    assert cfg.data.normalization == [list(SHAPE.mean), list(SHAPE.std)]
    run = imgcls.fit(cfg)
    log = (run.folder / "log.txt").read_text(encoding="utf-8")
    assert "backbone and head are loaded" in log


def test_weights_of_timm_on_the_hub_start_a_training_too(hub: Hub) -> None:
    from safetensors.torch import save

    theirs = timm.create_model("test_resnet", num_classes=7)
    config = b'{"architecture": "test_resnet", "num_classes": 7, "mean": [0.5, 0.5, 0.5], "std": [1, 1, 1]}'
    hub.files["timm/other"] = {"config.json": config, "model.safetensors": save(theirs.state_dict())}
    cfg = imgcls.compose(["model.name=hf-hub:timm/other", "model.stem=standard"])
    ours = create_network(cfg.model.name, 3, weights=Path(cfg.model.weights))
    assert torch.equal(ours.backbone.state_dict()["conv1.0.weight"], theirs.state_dict()["conv1.0.weight"])
    assert cfg.data.normalization == [[0.5] * 3, [1.0] * 3]


def test_a_network_that_timm_lacks_is_pushed_for_imgcls_and_says_so(hub: Hub, tmp_path: Path) -> None:
    imgcls.push.push(export(tmp_path / "linear"), "me/birds")
    folder = export(tmp_path / "model", head=Mlp(hidden=[8]))
    code, out, _ = command(f"run={folder}", "repo=me/birds")
    assert code == 0
    assert "timm cannot load it: the head is of the kind mlp." in out
    assert "config.json" not in hub.files["me/birds"], "that of the model before"
    ours = portable.load("hf-hub:me/birds").probabilities(PIXELS)
    assert np.array_equal(ours, portable.load(folder).probabilities(PIXELS))


def test_only_the_model_is_published_and_private_is_private(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = export(tmp_path / "model")
    (folder / "examples").mkdir()
    (folder / "examples" / "patient.jpg").write_bytes(b"private")
    assert command(f"run={folder}", "repo=me/birds", "private=true")[0] == 0
    assert hub.private == {"me/birds"}
    assert not [name for name in hub.files["me/birds"] if "patient" in name]
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(UserError, match="there is no such repository, or it is private"):
        portable.load("hf-hub:me/birds")


def test_mistakes_are_one_line(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = export(tmp_path / "model")
    assert command(f"run={folder}")[0] == 2
    for repo in ("birds", "me/birds/more", "../birds", "me/b irds"):
        code, _, err = command(f"run={folder}", f"repo={repo}")
        assert (code, err.count("\n")) == (2, 1)
        assert "Write user/name" in err
    code, _, err = command(f"run={folder}", "repo=me/birds", "license=Apache 2")
    assert (code, "as the hub names it" in err) == (2, True)
    monkeypatch.setenv("HF_TOKEN", "hf_other")
    code, _, err = command(f"run={folder}", "repo=me/birds")
    assert (code, err.count("\n"), "the hub refuses it (403)" in err) == (2, 1, True)
    monkeypatch.delenv("HF_TOKEN")
    code, _, err = command(f"run={folder}", "repo=me/birds")
    assert (code, err.count("\n"), "There is no token" in err) == (2, 1, True)
    with pytest.raises(UserError, match=r"hf-hub:me/nothing cannot be loaded: there is no such repository"):
        imgcls.compose(["model.name=hf-hub:me/nothing"])


def test_without_a_network_it_says_so_at_once(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    folder = export(tmp_path / "model")
    imgcls.push.push(folder, "me/birds")
    portable.load("hf-hub:me/birds")
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # where nothing listens
    assert portable.load("hf-hub:me/birds").class_names == NAMES, "from the cache"
    with pytest.raises(UserError, match=r"hf-hub:me/others cannot be loaded: http://127.0.0.1:9"):
        portable.load("hf-hub:me/others")
    code, _, err = command(f"run={folder}", "repo=me/birds")
    assert (code, err.count("\n"), "http://127.0.0.1:9" in err) == (2, 1, True)


def test_a_repository_that_lies_is_refused(hub: Hub, tmp_path: Path) -> None:
    hub.files["me/bad"] = {"config.json": b'{"architecture": "a b; c", "model_args": {}}', "model.safetensors": b"x"}
    with pytest.raises(UserError, match="damaged"):
        imgcls.compose(["model.name=hf-hub:me/bad"])
    hub.files["me/bad"]["config.json"] = b'{"architecture": "resnet18", "model_args": {"checkpoint_path": "/etc/x"}}'
    with pytest.raises(UserError, match="no option of a network"):
        imgcls.compose(["model.name=hf-hub:me/bad"])
    (tmp_path / "overrides.yaml").write_text("[model.name=hf-hub:me/bad]\n")
    with pytest.raises(UserError, match="send data elsewhere"):
        imgcls.compose([str(tmp_path / "overrides.yaml")])
