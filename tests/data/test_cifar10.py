"""The Python batches of CIFAR-10: as written by Python 2, damaged, and malicious."""

from __future__ import annotations

import pickle
import random
import struct
import tracemalloc
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from imgcls.data.cifar10 import BATCHES, PYTHON, find_cifar10
from imgcls.data.unpickling import UnsafePickle, read_arrays
from imgcls.errors import UserError


def as_python_2(labels: list[int], data: np.ndarray) -> bytes:
    """The opcodes of the published batches: protocol 2, text as byte strings, and numpy's old names."""

    def text(value: bytes) -> bytes:
        return b"U" + bytes([len(value)]) + value if len(value) < 256 else b"T" + struct.pack("<i", len(value)) + value

    rows, columns = (b"M" + struct.pack("<H", size) for size in data.shape)
    kind = b"cnumpy\ndtype\n" + text(b"u1") + b"K\x00K\x01\x87R(K\x03" + text(b"|") + b"NNN" + b"J\xff\xff\xff\xff" * 2
    array = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85" + text(b"b") + b"\x87R(K\x01"
    array += rows + columns + b"\x86" + kind + b"K\x00tb\x89" + text(data.tobytes()) + b"tb"
    numbers = b"](" + b"".join(b"K" + bytes([label]) for label in labels) + b"e"
    head = text(b"batch_label") + text(b"training batch 1 of 5")
    return b"\x80\x02}q\x01(" + head + text(b"labels") + numbers + text(b"data") + array + b"u."


def batch(rows: int = 12) -> tuple[list[int], np.ndarray]:
    pixels = np.random.default_rng(0).integers(0, 256, (rows, 3072), dtype=np.uint8)
    return [row % 10 for row in range(rows)], pixels


def write(root: Path, content: bytes) -> Path:
    folder = root / PYTHON
    folder.mkdir()
    for names in BATCHES.values():
        for name in names:
            (folder / name).write_bytes(content)
    return folder


def test_as_published(tmp_path: Path) -> None:
    labels, pixels = batch()
    source = find_cifar10(write(tmp_path, as_python_2(labels, pixels)))
    assert [len(split) for split in source.splits().values()] == [60, 12]
    assert source.test is not None
    assert source.test.labels.tolist() == labels
    assert isinstance(source.test.pictures, np.ndarray)
    assert source.test.pictures[2, 5, 7].tolist() == pixels[2].reshape(3, 32, 32)[:, 5, 7].tolist()


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("kind", ["uint8", "<i8", ">i4", "float32"])
def test_arrays_are_read_unchanged(kind: str, order: Any) -> None:
    array = np.asarray(np.arange(12).reshape(3, 4), dtype=kind, order=order)
    for protocol in range(5):
        loaded = read_arrays(pickle.dumps({"a": array}, protocol))["a"]
        assert np.array_equal(loaded, array)
        assert loaded.dtype == array.dtype


def test_damaged_pickles_neither_crash_nor_raise_other_errors() -> None:
    rng = random.Random(0)  # numpy's own __setstate__ ends the process on some of these
    for content in (as_python_2(*batch(2)), pickle.dumps(dict(zip(("labels", "data"), batch(2), strict=True)), 0)):
        for _ in range(1000):
            damaged = bytearray(content)
            for _ in range(rng.randrange(1, 4)):
                damaged[rng.randrange(280)] = rng.randrange(256)
            with suppress(UnsafePickle):
                assert isinstance(read_arrays(bytes(damaged)), dict)


@pytest.mark.parametrize(
    "content",
    [
        b"cos\nsystem\n(S'false'\ntR.",
        b"\x80\x02cbuiltins\neval\nX\x01\x00\x00\x001\x85R.",
        b"\x80\x04\x8c\x05numpy\x8c\x08f2py.run\x93.",
        pickle.dumps({"a": np.array([{}], dtype=object)}),
        pickle.dumps({"a": np.zeros(1, dtype=[("x", "u1")])}),
        pickle.dumps([1]),
    ],
    ids=["system", "eval", "dotted", "objects", "fields", "no dictionary"],
)
def test_refused(content: bytes) -> None:
    with pytest.raises(UnsafePickle):
        read_arrays(content)


def test_a_high_memo_number_allocates_no_memory() -> None:
    tracemalloc.start()
    try:
        assert read_arrays(b"\x80\x02}r\xff\xff\xff\x00.") == {}
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("labels", "pixels"),
    [
        ([1, 2], np.zeros((3, 3072), np.uint8)),
        ([[1, 2]] * 3, np.zeros((3, 3072), np.uint8)),
        ([1] * 3, np.zeros((3, 3072))),
        ([1] * 3, np.zeros((3, 1024), np.uint8)),
        ([-1] * 3, np.zeros((3, 3072), np.uint8)),
        (None, 7),
    ],
)
def test_content_that_is_not_a_batch(labels: Any, pixels: Any, tmp_path: Path) -> None:
    folder = write(tmp_path, pickle.dumps({b"labels": labels, b"data": pixels}, 2))
    with pytest.raises(UserError, match=r"data_batch_1 is not a readable batch .* Download the archive again"):
        find_cifar10(folder)
