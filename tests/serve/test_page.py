"""The page in a real browser: drop an image, choose one, take a photo, and see bars."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from imgcls.portable import PortableModel
from tests.inputs.images import encoded
from tests.serve import chromium
from tests.serve.conftest import Server, picture, serving

pytestmark = pytest.mark.skipif(chromium.executable() is None, reason="no Chromium is installed")

LABELS = (
    "[...document.querySelectorAll('.answer:first-child .classes li')]"
    ".map(li => [...li.querySelectorAll('span')].map(s => s.textContent))"
)


@pytest.fixture(scope="module")
def page(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[chromium.Page]:
    with chromium.browser(tmp_path_factory.mktemp("chromium")) as opened:
        yield opened


def save_image(folder: Path, seed: int) -> Path:
    file = folder / f"{seed}.png"
    file.write_bytes(encoded(picture(seed, 320, 200), "PNG"))
    return file


def displayed_classes(page: chromium.Page) -> list[tuple[str, str]]:
    page.wait_for("document.querySelector('.classes li') || document.querySelector('.bad')")
    return [(name, value) for name, value in page.value(LABELS)]


def expected_classes(model: PortableModel, file: Path) -> list[tuple[str, str]]:
    return [(name, f"{100 * value:.1f}%") for name, value in model.top([file])[0]]


@pytest.mark.parametrize("way", ["drop", "choose", "camera"])
def test_a_picture_and_its_classes(
    way: str, page: chromium.Page, server: Server, model: PortableModel, tmp_path: Path
) -> None:
    file = save_image(tmp_path, {"drop": 1, "choose": 2, "camera": 3}[way])
    page.open(f"{server.url}/")
    page.wait_for("document.getElementById('about').textContent.includes('3 classes')")
    if way == "drop":
        page.drop_file(200, 150, file)
    else:
        page.choose_file("#file" if way == "choose" else "#camera", file)
    assert displayed_classes(page) == expected_classes(model, file)
    tracks = page.value("[...document.querySelectorAll('.track')].map(track => track.getBoundingClientRect().width)")
    page.wait_for("!document.getAnimations().length")
    widths = page.value("[...document.querySelectorAll('.bar')].map(bar => bar.getBoundingClientRect().width)")
    values = [value for _, value in model.top([file])[0]]
    assert np.allclose(np.array(widths) / tracks, values, atol=0.01)
    assert page.value("document.querySelector('.picture').naturalWidth") == 320


def test_the_camera_is_the_rear_one(page: chromium.Page, server: Server) -> None:
    page.open(f"{server.url}/")
    assert page.value("document.getElementById('camera').getAttribute('capture')") == "environment"
    assert page.value("document.getElementById('camera').accept") == "image/*"


def test_a_file_that_is_not_an_image_is_reported(page: chromium.Page, server: Server, tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"hello")
    page.open(f"{server.url}/")
    page.choose_file("#file", tmp_path / "a.jpg")
    assert displayed_classes(page) == []
    assert "not an image" in page.value("document.querySelector('.answer .bad').textContent")


def test_an_image_larger_than_a_request_is_scaled_down(page: chromium.Page, server: Server, tmp_path: Path) -> None:
    from PIL import Image

    noise = np.random.default_rng(0).integers(0, 256, (1500, 1600, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "large.png", compress_level=0)
    assert (tmp_path / "large.png").stat().st_size > 6_291_456
    page.open(f"{server.url}/")
    page.choose_file("#file", tmp_path / "large.png")
    assert len(displayed_classes(page)) == 3


def test_class_names_are_shown_as_plain_text(page: chromium.Page, server: Server) -> None:
    page.open(f"{server.url}/")
    page.value(
        "draw(Object.assign(add(new File([], '<b>a</b>')), "
        "{classes: [{class: '<img src=x onerror=window.broken=1>', probability: 0.5}]}))"
    )
    assert page.value("document.querySelector('.answer b, .classes img')") is None
    assert "<img" in page.value("document.querySelector('.classes span').textContent")
    assert "<b>" in page.value("document.querySelector('.answer h2').textContent")


def test_several_images_and_their_table(
    page: chromium.Page, server: Server, model: PortableModel, tmp_path: Path
) -> None:
    files = [save_image(tmp_path, seed) for seed in range(6)]
    (tmp_path / "=bad.png").write_bytes(b"hello")
    page.open(f"{server.url}/")
    page.value("document.addEventListener('click', event => { window.saved = event.target.href; }, true)")
    page.choose_file("#file", *files, tmp_path / "=bad.png")
    page.wait_for("answers.length == 7 && answers.every(answer => answer.classes || answer.error)")
    page.value("URL.createObjectURL = blob => { window.blob = blob; return 'blob:none'; }")
    page.value("document.getElementById('save').click()")
    header, *rows = page.value("window.blob.text()").splitlines()
    assert header == "file,class,probability,known,error"
    best = [model.top([file])[0][0] for file in files]
    assert [row.split(",")[:2] for row in rows[:6]] == [
        [f'"{file.name}"', f'"{name}"'] for file, (name, _) in zip(files, best, strict=True)
    ]
    assert np.allclose([float(row.split(",")[2]) for row in rows[:6]], [value for _, value in best], atol=1e-5)
    assert rows[6].startswith('"\'=bad.png",,,,')
    page.value("document.getElementById('clear').click()")
    assert page.value("document.querySelectorAll('.answer').length") == 0


def test_an_example_a_correction_and_the_key(page: chromium.Page, model: PortableModel, tmp_path: Path) -> None:
    from imgcls.portable.examples import find_examples
    from imgcls.serve.feedback import Feedback
    from imgcls.serve.guards import Guards

    for seed in range(12):
        (tmp_path / f"{seed % 3}").mkdir(exist_ok=True)
        save_image(tmp_path / f"{seed % 3}", seed)
    application = {
        "guards": Guards(api_key="correct-horse"),
        "examples": find_examples(tmp_path, 4),
        "feedback": Feedback(tmp_path / "kept"),
    }
    with serving(model, application=application) as server:
        page.open(f"{server.url}/")
        page.wait_for("!document.getElementById('access').hidden")
        page.value("document.getElementById('key').value = 'correct-horse'")
        page.value("document.querySelector('#access button').click()")
        page.wait_for("document.querySelectorAll('#examples button').length == 4")
        page.value("document.querySelectorAll('#examples button')[1].click()")
        assert len(displayed_classes(page)) == 3
        page.value("document.querySelector('.answer form input').value = 'a new class'")
        page.value("document.querySelector('.answer form button').click()")
        page.wait_for("document.querySelector('.answer form span').textContent.startsWith('Thank you')")
    assert ",a new class," in (tmp_path / "kept" / "labels.csv").read_text()


def test_an_image_unlike_the_training_images_is_said_to_be(page: chromium.Page, server: Server) -> None:
    page.open(f"{server.url}/")
    page.value("draw(Object.assign(add(new File([], 'a')), {known: false, classes: [{class: 'a', probability: 1}]}))")
    assert "Not sure" in page.value("document.querySelector('.answer').textContent")
