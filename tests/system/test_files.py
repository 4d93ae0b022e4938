from __future__ import annotations

import errno
from pathlib import Path

import pytest

from imgcls.errors import UserError, nearest
from imgcls.system.files import atomic_path, atomic_write_text, explain_os_errors


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "status.json"
    atomic_write_text(target, "old")

    def killed_while_writing() -> None:
        with atomic_path(target) as temporary:
            temporary.write_text("half")
            raise RuntimeError("killed")

    with pytest.raises(RuntimeError):
        killed_while_writing()
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_missing_folders_are_made(tmp_path: Path) -> None:
    atomic_write_text(tmp_path / "a" / "b" / "file", "new")
    assert (tmp_path / "a" / "b" / "file").read_text() == "new"


@pytest.mark.parametrize(
    ("code", "words"), [(errno.ENOSPC, "No space left"), (errno.EACCES, "Cannot write"), (errno.EROFS, "Cannot write")]
)
def test_a_full_disk_or_an_unwritable_folder_is_one_line(code: int, words: str) -> None:
    with pytest.raises(UserError, match=words) as caught, explain_os_errors(Path("runs/x")):
        raise OSError(code, "reason")
    assert "runs/x" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_other_os_errors_are_not_hidden() -> None:
    with pytest.raises(ConnectionResetError), explain_os_errors(Path("x")):
        raise ConnectionResetError(errno.ECONNRESET, "reset")


def test_nearest_names_or_all_of_a_short_list() -> None:
    assert nearest("resnet19", ["resnet18", "vit"]) == "Did you mean resnet18?"
    assert nearest("zebra", ["b", "a"]) == "Choose one of: a, b."
    assert "(8 more)" in nearest("zebra", [f"name{n:02}" for n in range(20)])
