"""The portable model: the same outputs after reading it back, without heavy imports."""

import io
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from imgcls import portable
from imgcls.errors import UserError
from imgcls.images.decoding import BadPicture
from imgcls.images.preprocessing import Preprocessing
from imgcls.models.backbones import create_network
from imgcls.models.heads import Mlp
from imgcls.models.network import Network
from imgcls.portable.card import model_card

NAMES = ("Äpfel", "Birnen", "Kirschen")
SHAPE = Preprocessing(image_size=32, resize=36)
PIXELS = np.random.default_rng(0).integers(0, 256, (6, 32, 32, 3), dtype=np.uint8)


def build(name: str = "test_resnet", **options: Any) -> Network:
    torch.manual_seed(0)
    net = create_network(name, len(NAMES), head=Mlp(hidden=[8], norm="batch", dropout=0.5), **options)
    net(torch.randn(16, 3, 32, 32) * 3)  # changes the batch-norm statistics
    return net


def write(net: Network, folder: Path, **options: Any) -> Path:
    metrics = {"val/accuracy": 0.75, "test/accuracy": 0.5}
    portable.export(net, preprocessing=SHAPE, class_names=NAMES, metrics=metrics, folder=folder, **options)
    return folder


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(build(), tmp_path_factory.mktemp("portable") / "model", onnx=False)


@pytest.mark.parametrize(
    "options",
    [{}, {"stem": "small"}, {"drop_rate": 0.5, "drop_path_rate": 0.1}, {"name": "test_vit", "image_size": 32}],
)
def test_probabilities_survive_a_round_trip(tmp_path: Path, options: dict[str, Any]) -> None:
    net = build(**options).to(memory_format=torch.channels_last)
    parity = portable.check(write(net, tmp_path / "model", onnx=False), PIXELS, net)["safetensors"]
    assert parity.difference < 1e-6
    assert parity.agreement == 1.0
    assert net.training


def test_onnx_agrees_for_any_batch_size(tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    folder = write(build(), tmp_path / "model")
    for count in (1, 5):
        parity = portable.check(folder, PIXELS[:count])["onnx"]
        assert parity.pictures == count
        assert parity.difference < 1e-4
        assert parity.agreement == 1.0
    assert sorted(file.name for file in folder.iterdir()) == [
        "README.md",
        "model.json",
        "model.onnx",
        "model.safetensors",
    ]


def test_every_kind_of_input_gives_the_same(exported: Path, tmp_path: Path) -> None:
    model, pixels = portable.load(exported), PIXELS[0]
    picture = Image.fromarray(pixels)
    picture.save(tmp_path / "a.png")
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    inputs = [tmp_path / "a.png", str(tmp_path / "a.png"), buffer.getvalue(), picture, pixels]
    predicted = model.predict(inputs, batch_size=2)
    assert predicted.dtype == np.float32
    assert predicted.shape == (5, 3)
    assert np.allclose(predicted, model.probabilities(pixels[None]), atol=1e-6)
    assert np.allclose(predicted.sum(axis=1), 1, atol=1e-6)
    best = model.top(inputs[:1], top_k=2)[0]
    assert best[0] == (NAMES[predicted[0].argmax()], pytest.approx(float(predicted[0].max()), abs=1e-6))
    assert len(best) == 2
    assert model.predict([]).shape == (0, 3)
    with pytest.raises(BadPicture):
        model.predict([b"not a picture"])


def test_the_description_and_the_card(exported: Path) -> None:
    description = json.loads((exported / "model.json").read_text(encoding="utf-8"))
    assert description["format_version"] == portable.FORMAT_VERSION
    assert description["class_names"] == list(NAMES)
    assert description["preprocessing"] == SHAPE.as_dict()
    assert description["metrics"]["test/accuracy"] == 0.5
    assert {"imgcls", "torch", "timm"} <= description["versions"].keys()
    card = (exported / "README.md").read_text(encoding="utf-8")
    assert "test_resnet, 3 classes" in card
    assert "Äpfel, Birnen, Kirschen" in card
    assert "| test/accuracy | 0.5000 |" in card


ABOUT = {
    "license": "cc-by-4.0",
    "data": {"name": "fruit_2026", "images": {"train": 1200, "val": 100, "test": 132}},
    "start": {"name": "test_resnet", "weights": "pretrained"},
    "per_class": [
        {"class": "Äpfel", "images": 60, "precision": 0.9, "recall": 0.95},
        {"class": "Birnen", "images": 60, "precision": 0.8, "recall": 0.5},
        {"class": "Kirschen", "images": 12, "precision": 1.0, "recall": 1.0},
    ],
}


def test_the_card_describes_data_classes_and_limits_and_the_hub_reads_it(tmp_path: Path) -> None:
    from huggingface_hub import ModelCard

    folder = write(build(), tmp_path / "model", onnx=False, about=ABOUT)
    text = (folder / "README.md").read_text(encoding="utf-8")
    card = ModelCard(text)
    assert card.data.license == "cc-by-4.0"
    assert card.data.pipeline_tag == "image-classification"
    assert card.data.library_name == "imgcls"
    [accuracy] = card.data.eval_results
    assert (accuracy.metric_type, accuracy.metric_value) == ("accuracy", 0.5)
    assert (accuracy.dataset_name, accuracy.dataset_split) == ("fruit_2026", "test")
    assert "| training | 1,200 |" in text
    assert "| Birnen | 60 | 0.8000 | 0.5000 |" in text
    assert "finds the fewest images: Birnen (50%)" in text
    assert r"fruit\_2026" in text
    assert "The results of Kirschen are of fewer than 20 test images" in text
    assert portable.load(folder).description["data"] == ABOUT["data"]


def test_what_a_card_is_given_cannot_break_its_front_matter() -> None:
    from huggingface_hub import ModelCard

    name = 'a"\n---\nlicense: mit\n# <b>: {'
    described = {"class_names": [name], "architecture": {"name": "x"}, "preprocessing": SHAPE.as_dict(), "parity": {}}
    card = ModelCard(
        model_card(
            described
            | {"metrics": {"test/accuracy": 1.0}, "versions": {"imgcls": "1"}, "data": {"name": name, "images": {}}}
        )
    )
    assert card.data.license is None
    assert card.data.eval_results[0].dataset_name == name


def copy_with(exported: Path, folder: Path, **changes: Any) -> Path:
    folder.mkdir()
    for file in exported.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    description = json.loads((folder / "model.json").read_text()) | changes
    (folder / "model.json").write_text(
        json.dumps({key: value for key, value in description.items() if value is not None})
    )
    return folder


def test_a_newer_format_is_refused(exported: Path, tmp_path: Path) -> None:
    newer = portable.FORMAT_VERSION + 1
    with pytest.raises(UserError, match=f"format {newer}"):
        portable.load(copy_with(exported, tmp_path / "m", format_version=newer))


def test_damage_is_reported(exported: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no exported model"):
        portable.load(tmp_path)
    with pytest.raises(UserError, match="class_names"):
        portable.load(copy_with(exported, tmp_path / "a", class_names=None))
    half = copy_with(exported, tmp_path / "b")
    (half / "model.safetensors").write_bytes((half / "model.safetensors").read_bytes()[:100])
    with pytest.raises(UserError, match=r"model\.safetensors cannot be read"):
        portable.load(half)
    (half / "model.json").write_text('{"format_version": 1')
    with pytest.raises(UserError, match=r"model\.json is damaged"):
        portable.load(half)


def test_loads_without_lightning_and_hydra(exported: Path) -> None:
    code = (
        "import sys; from imgcls import portable; portable.load(sys.argv[1]); "
        "print({'lightning', 'pytorch_lightning', 'hydra', 'omegaconf', 'torchmetrics'} & {*sys.modules})"
    )
    result = subprocess.run([sys.executable, "-c", code, str(exported)], check=True, capture_output=True, text=True)
    assert result.stdout == "set()\n"


@pytest.mark.parametrize(
    "changes",
    [
        {"class_names": ["a", "b"]},
        {"class_names": "abc"},
        {"class_names": [1, 2, 3]},
        {"class_names": 3},
        {"architecture": []},
        {"calibration": None},
        {"calibration": []},
        {"calibration": {"temperature": 0}},
        {"calibration": {"temperature": "1"}},
        {"architecture": {"name": "test_resnet", "num_classes": 3, "head": "mlp"}},
    ],
)
def test_a_description_with_other_values_is_damaged(exported: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="damaged"):
        portable.load(copy_with(exported, tmp_path / "m", **changes))


@pytest.mark.parametrize("hidden", [[10**7, 10**7], [10**30], [9]])
@pytest.mark.parametrize("norm", ["batch", "none"])
def test_sizes_that_the_weights_do_not_have_take_no_memory(
    exported: Path, tmp_path: Path, hidden: list[int], norm: str
) -> None:
    shutil.copytree(exported, tmp_path / "model")
    description = json.loads((tmp_path / "model" / "model.json").read_text())
    description["architecture"]["head"]["hidden"] = hidden
    description["architecture"]["head"]["norm"] = norm
    (tmp_path / "model" / "model.json").write_text(json.dumps(description))
    with pytest.raises(
        UserError, match=r"(model\.safetensors does not fit model\.json|model\.json is damaged)"
    ) as error:
        portable.load(tmp_path / "model")
    assert "\n" not in str(error.value)
    assert "allocate" not in str(error.value)


def test_a_description_can_name_no_checkpoint(exported: Path, tmp_path: Path) -> None:
    description = json.loads((exported / "model.json").read_text())
    architecture = description["architecture"] | {"options": {"checkpoint_path": str(tmp_path / "evil.pth")}}
    with pytest.raises(UserError, match="checkpoint_path"):
        portable.load(copy_with(exported, tmp_path / "m", architecture=architecture))


def test_a_deeply_nested_description_is_damaged(tmp_path: Path) -> None:
    (tmp_path / "model.json").write_text("[" * 100_000)
    with pytest.raises(UserError, match="damaged"):
        portable.load(tmp_path)


def test_class_names_are_no_html_and_no_markdown_in_the_card() -> None:
    names = ['<img src=x onerror="alert(1)">', "[a](javascript:b)", "two\n\n# lines", "golden_retriever", "a|b", "&lt;"]
    shape = SHAPE.as_dict()
    card = model_card(
        {"class_names": names, "architecture": {"name": "x"}, "preprocessing": shape, "metrics": {}, "parity": {}}
        | {"versions": {"imgcls": "1"}}
    )
    (line,) = [line for line in card.splitlines() if line.startswith("Classes: ")]
    assert line == (
        r'Classes: &lt;img src=x onerror="alert(1)"&gt;, \[a\](javascript:b), two \# lines, golden\_retriever, a\|b, '
        "&amp;lt;"
    )
