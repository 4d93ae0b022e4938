"""Images of other channels and bits: what files people have, and the same numbers from the file to the answer."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import imgcls
from imgcls import portable
from imgcls.data.augment import Augment
from imgcls.data.checks import inspect
from imgcls.data.imagefolder import ImageFolder
from imgcls.data.policies import ColorJitter, RandAugment
from imgcls.data.randomness import Draws
from imgcls.errors import UserError
from imgcls.evaluate import measure
from imgcls.images.channels import Depth, Planes, open_planes, spread
from imgcls.images.decoding import BadPicture, open_picture
from imgcls.images.preprocessing import Preprocessing
from imgcls.models.backbones import create_network
from imgcls.portable.model import softmax
from imgcls.predict import predict
from tests.serve.conftest import serving
from tests.trainings import SMALL

GREY, GREY16 = Depth(1), Depth(1, 16)


def deep(height: int = 20, width: int = 30, channels: int = 5) -> np.ndarray:
    """uint16 values with more than 8 bits."""
    return np.random.default_rng(0).integers(0, 65536, (height, width, channels), dtype=np.uint16)


def saved(image: Any, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    if kind == "NPY":
        np.save(buffer, image)
    else:
        image.save(buffer, kind, **options)
    return buffer.getvalue()


def pages(values: np.ndarray) -> bytes:
    images = [Image.fromarray(np.ascontiguousarray(values[..., page])) for page in range(values.shape[2])]
    return saved(images[0], "TIFF", save_all=True, append_images=images[1:])


def test_files_with_channels(tmp_path: Path) -> None:
    values = deep()
    (tmp_path / "deep.npy").write_bytes(saved(values, "NPY"))
    sources = [saved(values, "NPY"), saved(np.moveaxis(values, 2, 0), "NPY"), pages(values), values, Planes(values)]
    for source in [*sources, tmp_path / "deep.npy"]:
        assert np.array_equal(open_planes(source, Depth(5, 16)).values, values)
        assert np.array_equal(open_planes(source, Depth(5)).values, values >> 8)
    shares = values[..., :2] / 65535
    assert np.array_equal(open_planes(saved(shares, "NPY"), Depth(2, 16)).values, values[..., :2])
    small = (values >> 8).astype(np.uint8)
    assert np.array_equal(open_planes(pages(small), Depth(5, 16)).values, small.astype(np.uint16) * 257)
    rgba = Image.fromarray(small[..., :4])
    assert np.array_equal(open_planes(saved(rgba, "PNG"), Depth(4)).values, small[..., :4])
    assert np.array_equal(np.asarray(open_picture(saved(small[..., :3], "NPY"))), small[..., :3]), "of RGB models too"


def test_bands_that_need_tifffile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as without:
        without.setattr("imgcls.images.channels.importlib.util.find_spec", lambda name: None)
        with pytest.raises(BadPicture, match=r"imgcls\[tiff\]"):
            open_planes(b"II*\0" + bytes(20), Depth(7))
    tifffile = pytest.importorskip("tifffile")
    values = deep(channels=7)
    for planar, stored in [("contig", values), ("separate", np.moveaxis(values, 2, 0))]:
        tifffile.imwrite(tmp_path / "a.tif", stored, planarconfig=planar, photometric="minisblack")
        for source in (tmp_path / "a.tif", (tmp_path / "a.tif").read_bytes()):
            assert np.array_equal(open_planes(source, Depth(7, 16)).values, values), planar
    tifffile.imwrite(tmp_path / "rgb.tif", values[..., :3], photometric="rgb")
    assert np.array_equal(open_planes(tmp_path / "rgb.tif", Depth(3, 16)).values, values[..., :3])
    with pytest.raises(BadPicture, match="7 channels, not 6"):
        open_planes(source, Depth(6))
    with pytest.raises(BadPicture, match="cannot be decoded"):
        open_planes(source[:60], Depth(7))


def test_grey() -> None:
    values = deep(channels=1)[..., 0]
    for kind in ("PNG", "TIFF"):
        content = saved(Image.fromarray(values), kind)
        assert np.array_equal(open_planes(content, GREY16).values[..., 0], values)
        assert np.array_equal(open_planes(content, GREY).values[..., 0], np.asarray(open_picture(content))[..., 0])
        assert np.array_equal(open_planes(content, Depth(3, 16)).values, np.repeat(values[..., None], 3, axis=2))
    colours = Image.fromarray((deep(channels=3) >> 8).astype(np.uint8))
    assert np.array_equal(open_planes(saved(colours, "PNG"), GREY).values[..., 0], np.asarray(colours.convert("L")))
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = open_planes(saved(colours.convert("L"), "PNG", exif=exif), GREY)
    assert np.array_equal(turned.values[..., 0], np.rot90(np.asarray(colours.convert("L")), -1))


@pytest.mark.parametrize(
    ("source", "depth", "complaint"),
    [
        (saved(deep(), "NPY"), Depth(4), "5 channels, not 4"),
        (saved(deep()[..., 0] / 100.0, "NPY"), GREY, "floats from .* not 0 to 1"),
        (saved(np.full((4, 4), np.nan), "NPY"), GREY, "floats from nan"),
        (saved(-deep()[..., 0].astype(np.int32), "NPY"), GREY, "values from -.* not 0 to 65535"),
        (saved(deep(), "NPY")[:-5], Depth(5), "shorter or longer"),
        (saved(np.array(["a"]), "NPY"), GREY, "not of numbers"),
        (saved(np.zeros(7, dtype=np.uint8), "NPY"), GREY, r"shape \(7,\)"),
        (saved(Image.new("RGB", (4, 4)), "PNG"), Depth(5), "3 channels, not 5"),
        (b"", GREY, "empty"),
        (b"no image", GREY, "not an image"),
    ],
)
def test_files_that_are_refused(source: bytes, depth: Depth, complaint: str) -> None:
    with pytest.raises(BadPicture, match=complaint):
        open_planes(source, depth)


def test_pickles_are_not_loaded(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(BadPicture, match="not of numbers"):
        open_planes(tmp_path / "a.npy", Depth(5))


@pytest.mark.parametrize("fit", ["crop", "pad", "squash"])
def test_preprocessing(fit: str) -> None:
    """Of 8-bit RGB the same as Pillow's images give; 16 bits are the same but for the rounding."""
    eight = (deep(40, 70, 3) >> 8).astype(np.uint8)
    rgb = Preprocessing(24, 28, fit=fit, pad_colour=(99, 99, 99))
    expected = rgb.pixels(Image.fromarray(eight))
    for channel in range(3):
        one = Preprocessing(24, 28, fit=fit, pad_colour=(99, 99, 99), channels=1)
        assert np.array_equal(one.pixels(Planes(eight[..., channel : channel + 1]))[..., 0], expected[..., channel])
    fine = Preprocessing(24, 28, fit=fit, pad_colour=(99, 99, 99), bits=16)
    pixels = fine.pixels(Planes(eight.astype(np.uint16) * 257))
    assert pixels.dtype == np.uint16
    assert np.abs(pixels / 257 - expected).mean() <= 0.5, "Pillow rounds and clips 8 bits between its two passes"
    assert np.abs(fine.normalise(pixels[None]) - rgb.normalise(expected[None])).mean() < 0.01
    assert Preprocessing.from_dict(json.loads(json.dumps(fine.as_dict()))) == fine
    assert not {"channels", "bits"} & rgb.as_dict().keys(), "a model for RGB is written as before"
    with pytest.raises(UserError, match="must be 5 numbers"):
        Preprocessing(24, 28, channels=5, mean=(0.5, 0.5))


def test_weights_are_adapted(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    torch.manual_seed(0)
    rgb = create_network("test_resnet", 3).eval()
    save_file({f"{name}": value for name, value in rgb.backbone.state_dict().items()}, tmp_path / "rgb.safetensors")
    images = torch.randn(2, 1, 32, 32)
    grey = create_network("test_resnet", 3, in_channels=1, weights=tmp_path / "rgb.safetensors").eval()
    assert torch.allclose(grey.features(images), rgb.features(images.expand(-1, 3, -1, -1)), atol=1e-4)
    six = create_network("test_resnet", 3, in_channels=6, weights=tmp_path / "rgb.safetensors").eval()
    assert torch.allclose(six.features(images.expand(-1, 6, -1, -1)), grey.features(images), atol=1e-4)
    assert spread((0.1, 0.2, 0.3), 5) == (0.1, 0.2, 0.3, 0.1, 0.2)


def test_augmentation_of_other_channels() -> None:
    draws = Draws.of(0, 0, torch.arange(64))
    for channels in (1, 5):
        images = torch.randint(0, 256, (64, channels, 16, 16)).float()
        changed = RandAugment(2, 20)(images, draws)
        assert changed.shape == images.shape
        assert changed.isfinite().all()
        assert torch.equal(ColorJitter(0, 0, 1.0, 0.5)(images, draws), images), "no colours to change"
        assert not torch.equal(ColorJitter(0.5, 0.5)(images, draws), images)


CLASSES = ("low", "high")


def write_stacks(root: Path, kind: str) -> Path:
    """Stacks of four channels whose last one alone tells the classes, by less than a step of 8 bits."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 24), ("val", 6), ("test", 8)):
        for number, name in enumerate(CLASSES):
            (root / split / name).mkdir(parents=True)
            for place in range(count):
                values = rng.integers(20_000, 20_100, (24, 24, 4), dtype=np.uint16)
                values[..., 3] = 25_700 + rng.integers(0, 40, (24, 24)) + 100 * number
                file = root / split / name / f"{place:02}.{kind}"
                file.write_bytes(pages(values) if kind == "tif" else saved(values, "NPY"))
    return root


@pytest.mark.parametrize("kind", ["npy", "tif"])
def test_a_run_and_all_ways_to_its_answers(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = write_stacks(tmp_path / "stacks", kind)
    words = [
        *SMALL,
        f"data.root={root}",
        "model.in_channels=4",
        "data.bits=16",
        "data.normalization=dataset",
        "debug=off",
    ]
    words += ["trainer.max_epochs=4", "optim.lr=3e-3", "data.batch_size=8", "report=true"]
    words += [f"data.store={'disk' if kind == 'npy' else 'none'}"]
    run = imgcls.fit(imgcls.compose([*words, f"run_dir={tmp_path / 'run'}"]))
    assert run.metrics["test/accuracy"] > 0.9, "8 bits could not tell the classes"
    description = json.loads((run.folder / "model" / "model.json").read_text())
    assert description["architecture"]["in_channels"] == description["preprocessing"]["channels"] == 4
    assert len(description["preprocessing"]["mean"]) == 4
    page = (run.folder / "report.html").read_text()
    assert "could not be created" not in page
    assert "data:image/jpeg;base64" in page

    files = [root / row["file"] for row in run.predictions]
    _, outputs = measure(run)
    expected = softmax(outputs.logits.float().numpy() / description["calibration"].get("temperature", 1.0))
    capsys.readouterr()
    predict([f"run={run.folder}", "format=jsonl", "engine=torch", *map(str, files)])
    lines = [json.loads(line)["classes"] for line in capsys.readouterr().out.splitlines()]
    pytest.importorskip("fastapi")
    model = portable.load(run.folder / "model")
    assert np.allclose(model.predict([str(file) for file in files]), expected, atol=1e-4)
    with serving(model) as server:
        served = [
            server.post(file.read_bytes(), "application/x-image").json["predictions"][0]["classes"] for file in files
        ]
        array = open_planes(files[0], Depth(4, 16)).values
        as_json = server.post(json.dumps({"instances": [array.tolist()]}).encode(), "application/json").json
        client = imgcls.Client(server.url).predict(array)
        wrong = server.post(saved(array[..., :3], "NPY"), "application/x-npy")
        other = server.post(saved(Image.new("RGB", (9, 9)), "PNG"), "image/png")
    assert np.allclose([dict(client[0])[name] for name in run.model.class_names], expected[0], atol=1e-3)
    assert wrong.status == other.status == 400
    assert "3 channels, not 4" in other.json["error"]
    answers = {"predict": lines, "server": served, "JSON": [as_json["predictions"][0]["classes"]]}
    for name, found in answers.items():
        for entries, row in zip(found, expected, strict=False):
            values = {entry["class"]: entry["probability"] for entry in entries}
            assert np.allclose([values[each] for each in run.model.class_names], row, atol=1e-3), name


def test_grey_digits_and_wrong_options(tmp_path: Path) -> None:
    words = ["data=digits", "model.name=cifarnet", "model.in_channels=1", "data.store=memory"]
    cfg = imgcls.compose(words)
    assert cfg.data.channels == 1
    root = tmp_path / "colours"
    for name in CLASSES:
        (root / name).mkdir(parents=True)
        for number in range(6):
            Image.new("RGB", (30, 20), (200, 10 * number, 0)).save(root / name / f"{number}.png")
    grey = ImageFolder(root, image_size=16, resize=16, channels=1, batch_size=4)
    batch = next(iter(grey.train_dataloader()))
    assert batch.images.shape[1:] == (1, 16, 16)
    assert len(grey.mean) == 1
    five = ImageFolder(root, image_size=16, resize=16, channels=5)
    with pytest.raises(UserError, match="3 channels, not 5"):
        five.setup()
    assert set(inspect(grey.source.train.pictures, tmp_path, 1, Depth(5)).reasons) == {"3 channels, not 5"}
    augment = Augment(per_image=[lambda image: image])
    with pytest.raises(UserError, match="per_image is for RGB"):
        ImageFolder(root, channels=1, augment=augment)
    for wrong in (["model.in_channels=0"], ["data.bits=12"], ["data.store=jpeg", "model.in_channels=1"]):
        with pytest.raises(UserError):
            imgcls.compose(["data=digits", *wrong])
