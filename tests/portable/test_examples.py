"""The validation images that a model keeps for the server's page."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from imgcls.errors import UserError
from imgcls.portable.examples import SIDE_PX, encode, find_examples
from imgcls.serve.__main__ import choose_examples
from tests.trainings import Fit


def test_a_run_keeps_small_validation_images_of_all_classes_unless_told_not_to(fit: Fit, pictures: Path) -> None:
    run = fit("trainer.max_epochs=1")
    kept = find_examples(run.folder / "model" / "examples")
    assert len(kept) == 7, "there are seven validation images"
    brightest = {int(np.asarray(Image.open(file)).mean(axis=(0, 1)).argmax()) for file in kept[:3]}
    assert brightest == {0, 1, 2}, "a class differs from the others in its colour"
    run = fit("trainer.max_epochs=1", "export.examples=false", name="private")
    assert not (run.folder / "model" / "examples").exists()


def test_an_example_is_small_and_has_no_metadata() -> None:
    image = Image.new("RGB", (2000, 1000), "red")
    exif = Image.Exif()
    exif[0x010E] = "the patient's name"
    image.info["exif"] = exif.tobytes()
    content = encode(image, SIDE_PX)
    assert b"patient" not in content
    assert Image.open(io.BytesIO(content)).size == (256, 128)


def test_a_grainy_image_is_an_example_too() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (300, 300, 3), dtype=np.uint8)
    assert Image.open(io.BytesIO(encode(Image.fromarray(noise), 300))).size == (300, 300)


def test_strangers_see_examples_only_if_asked_for(tmp_path: Path) -> None:
    (tmp_path / "model.json").write_text("{}")
    (tmp_path / "examples").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "examples" / "0.png")
    found = [tmp_path / "examples" / "0.png"]
    run = str(tmp_path)
    assert choose_examples("auto", run, private=True) == found
    assert choose_examples("auto", run, private=False) == []
    assert choose_examples("true", run, private=False) == found
    assert choose_examples("false", run, private=True) == []
    assert choose_examples(str(tmp_path / "examples"), run, private=False) == found
    found[0].unlink()
    assert choose_examples("auto", run, private=True) == []
    with pytest.raises(UserError, match=r"examples=true: there is no image in the model\."):
        choose_examples("true", run, private=True)
