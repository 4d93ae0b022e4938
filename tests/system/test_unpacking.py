"""Archives are told apart by what they are."""

from __future__ import annotations

import io
import random
import tarfile
import zipfile
from pathlib import Path

from imgcls.system.unpacking import extract


def test_a_tar_that_ends_with_a_zip_is_a_tar(tmp_path: Path) -> None:
    """As a run folder does, whose last file is numpy's; gzip keeps as it is what is packed already."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as inner:
        inner.writestr("a.npy", random.Random(0).randbytes(100_000))
    with tarfile.open(tmp_path / "run.tar", "w") as archive:
        member = tarfile.TarInfo("features.npz")
        member.size = len(packed.getvalue())
        archive.addfile(member, io.BytesIO(packed.getvalue()))
    assert zipfile.is_zipfile(tmp_path / "run.tar"), "what this test is about"
    extract(tmp_path / "run.tar", tmp_path / "run")
    assert (tmp_path / "run" / "features.npz").read_bytes() == packed.getvalue()
