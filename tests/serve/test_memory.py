"""The memory that the largest image takes, in a fresh process: of most kinds from one of a quarter of its pixels."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image, features

from imgcls.images.rgb import ORIENTATION
from imgcls.serve.predictor import MAX_LARGE_BYTES, MAX_PIXELS
from tests.inputs.images import icon

SIDE = 6300
PROGRAM = r"""
import re, sys
from pathlib import Path
from PIL import Image
from imgcls.images.decoding import open_picture
from imgcls.images.preprocessing import Preprocessing
from imgcls.serve.predictor import MAX_PIXELS

def kilobytes(name):
    return int(re.search(name + r":\s*(\d+)", Path("/proc/self/status").read_text())[1])

content = Path(sys.argv[1]).read_bytes()
preprocessing = Preprocessing(224, 256)
preprocessing.pixels(open_picture(Image.new("RGBA", (300, 300))))
before = kilobytes("VmRSS")
preprocessing.normalise(preprocessing.pixels(open_picture(content, MAX_PIXELS))[None])
print(1024 * (kilobytes("VmHWM") - before))
"""
# Format, mode and options of saving.
KINDS: dict[str, tuple[str, str, dict[str, object]]] = {
    "RGB": ("PNG", "RGB", {}),
    "RGBA": ("PNG", "RGBA", {}),
    "LA": ("PNG", "LA", {}),
    "palette with transparency": ("PNG", "P", {"transparency": 0}),
    "16 bits": ("PNG", "I;16", {}),
    "whole numbers": ("TIFF", "I", {"compression": "tiff_adobe_deflate"}),
    "fractions": ("TIFF", "F", {"compression": "tiff_adobe_deflate"}),
    "CMYK": ("TIFF", "CMYK", {"compression": "tiff_adobe_deflate"}),
    "rotated": ("JPEG", "RGB", {}),
    "progressive": ("JPEG", "RGB", {"progressive": True, "subsampling": 0}),
    "animation": ("GIF", "P", {"transparency": 0}),
    "WebP": ("WEBP", "RGBA", {"method": 0}),
    "JPEG 2000": ("JPEG2000", "RGBA", {}),
    "AVIF": ("AVIF", "RGB", {"speed": 10}),
    "HEIC": ("HEIF", "RGBA", {"quality": 50}),
    "icon": ("PNG", "RGBA", {}),
}
WHOLE = ("RGBA", "WebP", "JPEG 2000")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("name", KINDS)
def test_the_largest_image_takes_no_more_than_the_docs_say(name: str, tmp_path: Path) -> None:
    kind, mode, options = KINDS[name]
    if kind == "AVIF" and not features.check("avif"):
        pytest.skip("this Pillow reads no AVIF")
    if kind == "HEIF":
        pytest.importorskip("pillow_heif").register_heif_opener()
    assert MAX_PIXELS * 0.99 < SIDE * SIDE <= MAX_PIXELS
    largest = int(SIDE / 2**0.5) if kind == "JPEG2000" else SIDE
    side = largest if name in WHOLE else largest // 2
    if kind == "JPEG":
        exif = Image.Exif()
        exif[ORIENTATION] = 6
        options = {**options, "exif": exif}
    path = tmp_path / "large"
    Image.new(mode, (side, side)).save(path, kind, **options)
    if name == "icon":
        path.write_bytes(icon(path.read_bytes()))
    measured = subprocess.run([sys.executable, "-c", PROGRAM, str(path)], capture_output=True, text=True, check=True)
    size = int(measured.stdout)
    assert 4 * side**2 < size < MAX_LARGE_BYTES * side**2 / largest**2
