"""The page for people, in a real browser: drop a picture, choose one, take one, and see bars."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from imgcls.portable import PortableModel
from tests.serve import chromium
from tests.serve.conftest import Server, encoded, picture

pytestmark = pytest.mark.skipif(chromium.executable() is None, reason="no Chromium is installed")

SHOWN = (
    "[...document.querySelectorAll('#classes li')].map(li => [...li.querySelectorAll('span')].map(s => s.textContent))"
)


@pytest.fixture(scope="module")
def page(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[chromium.Page]:
    with chromium.browser(tmp_path_factory.mktemp("chromium")) as found:
        yield found


def saved(folder: Path, seed: int) -> Path:
    file = folder / f"{seed}.png"
    file.write_bytes(encoded(picture(seed, 320, 200)))
    return file


def shown(page: chromium.Page) -> list[tuple[str, str]]:
    page.wait_for("document.querySelectorAll('#classes li').length || document.querySelector('.bad')")
    return [(name, value) for name, value in page.value(SHOWN)]


def expected(model: PortableModel, file: Path) -> list[tuple[str, str]]:
    return [(name, f"{100 * value:.1f}%") for name, value in model.top([file])[0]]


@pytest.mark.parametrize("way", ["drop", "choose", "camera"])
def test_a_picture_and_its_classes(
    way: str, page: chromium.Page, server: Server, model: PortableModel, tmp_path: Path
) -> None:
    file = saved(tmp_path, {"drop": 1, "choose": 2, "camera": 3}[way])
    page.open(f"{server.url}/")
    page.wait_for("document.getElementById('about').textContent.includes('3 classes')")
    if way == "drop":
        page.drop_file(200, 150, file)
    else:
        page.choose_file("#file" if way == "choose" else "#camera", file)
    assert shown(page) == expected(model, file)
    widths = page.value("[...document.querySelectorAll('.bar')].map(bar => bar.getBoundingClientRect().width)")
    tracks = page.value("[...document.querySelectorAll('.track')].map(one => one.getBoundingClientRect().width)")
    page.wait_for("!document.getAnimations().length")
    widths = page.value("[...document.querySelectorAll('.bar')].map(bar => bar.getBoundingClientRect().width)")
    values = [value for _, value in model.top([file])[0]]
    assert np.allclose(np.array(widths) / tracks, values, atol=0.01)
    assert page.value("document.getElementById('picture').naturalWidth") == 320


def test_the_camera_is_the_one_that_looks_away_from_the_person(page: chromium.Page, server: Server) -> None:
    page.open(f"{server.url}/")
    assert page.value("document.getElementById('camera').getAttribute('capture')") == "environment"
    assert page.value("document.getElementById('camera').accept") == "image/*"


def test_what_is_no_picture_is_said(page: chromium.Page, server: Server, tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"hello")
    page.open(f"{server.url}/")
    page.choose_file("#file", tmp_path / "a.jpg")
    assert shown(page) == []
    assert "not a picture" in page.value("document.getElementById('said').textContent")


def test_a_picture_larger_than_a_request_is_made_smaller(page: chromium.Page, server: Server, tmp_path: Path) -> None:
    from PIL import Image

    noise = np.random.default_rng(0).integers(0, 256, (1500, 1600, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "large.png", compress_level=0)
    assert (tmp_path / "large.png").stat().st_size > 6_291_456
    page.open(f"{server.url}/")
    page.choose_file("#file", tmp_path / "large.png")
    assert len(shown(page)) == 3


def test_names_of_classes_are_text_and_nothing_else(page: chromium.Page, server: Server) -> None:
    page.open(f"{server.url}/")
    page.value("draw([{class: '<img src=x onerror=window.broken=1>', probability: 0.5}])")
    assert page.value("document.querySelector('#classes img')") is None
    assert "<img" in page.value("document.querySelector('#classes span').textContent")
