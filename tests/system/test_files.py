from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors import SafetensorError

from imgcls.errors import UserError, nearest
from imgcls.system.files import atomic_folder, atomic_path, atomic_write_text, explain_os_errors, read_yaml, take_lock
from imgcls.system.machine import free_inodes
from imgcls.system.shares import Share


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


def test_a_disk_without_inodes_is_told_from_a_full_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("imgcls.system.files.free_inodes", lambda path: 0)
    message = r"^No inodes left on the disk of runs/x: .* \(df -i\)"
    with pytest.raises(UserError, match=message), explain_os_errors(Path("runs/x")):
        raise OSError(errno.ENOSPC, "reason")


def test_inodes_of_a_folder_that_does_not_exist_yet(tmp_path: Path) -> None:
    assert free_inodes(tmp_path / "a" / "b") == free_inodes(tmp_path)


def test_a_full_disk_is_one_line_for_libraries_in_rust_as_well(tmp_path: Path) -> None:
    """Their errors are no OSError; the text is that of safetensors."""
    text = "Error while serializing: I/O error: No space left on device (os error 28)"
    with pytest.raises(UserError, match="No space left on the disk of"), atomic_path(tmp_path / "x"):
        raise SafetensorError(text)
    with pytest.raises(SafetensorError), atomic_path(tmp_path / "x"):
        raise SafetensorError("another error")


def test_other_os_errors_are_not_hidden() -> None:
    with pytest.raises(ConnectionResetError), explain_os_errors(Path("x")):
        raise ConnectionResetError(errno.ECONNRESET, "reset")


def test_nearest_names_or_all_of_a_short_list() -> None:
    assert nearest("resnet19", ["resnet18", "vit"]) == "Did you mean resnet18?"
    assert nearest("zebra", ["b", "a"]) == "Choose one of: a, b."
    assert "(8 more)" in nearest("zebra", [f"name{n:02}" for n in range(20)])


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_permissions_are_those_of_the_umask(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        with atomic_path(tmp_path / "private") as temporary:
            os.close(os.open(temporary, os.O_CREAT | os.O_WRONLY, 0o600))  # as safetensors does
        atomic_write_text(tmp_path / "plain", "text")
    finally:
        os.umask(before)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert modes == dict.fromkeys(("private", "plain"), 0o666 & ~umask)


def test_a_block_that_writes_nothing_leaves_the_old_file(tmp_path: Path) -> None:
    atomic_write_text(tmp_path / "file", "old")
    with pytest.raises(UserError), atomic_path(tmp_path / "file"):
        pass
    assert (tmp_path / "file").read_text() == "old"


def test_a_file_takes_the_place_of_files_only(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "stdout").symlink_to("/proc/self/fd/1")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    for name in ("folder", "pipe", "stdout"):
        with pytest.raises(UserError, match="give the name of a file"):
            atomic_write_text(tmp_path / name, "new")
        with pytest.raises(UserError, match="give the name of a file"):
            Share().parts(tmp_path / name, [])  # before anything is computed
    atomic_write_text(tmp_path / "link", "new")
    assert (tmp_path / "link").read_text() == "new"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "link", "pipe", "stdout"]


def content(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir()}


def test_a_folder_is_replaced_whole(tmp_path: Path) -> None:
    target = tmp_path / "model"
    for text in ("old", "new"):
        with atomic_folder(target) as partial:
            assert list(partial.iterdir()) == []
            (partial / text).write_text(text)
        assert content(target) == {text: text}
    assert list(tmp_path.iterdir()) == [target]


def test_a_failed_folder_leaves_the_old_one(tmp_path: Path) -> None:
    target = tmp_path / "model"
    with atomic_folder(target) as partial:
        (partial / "old").write_text("old")

    def fail() -> None:
        with atomic_folder(target) as partial:
            (partial / "new").write_text("new")
            raise RuntimeError("killed")

    with pytest.raises(RuntimeError):
        fail()
    assert content(target) == {"old": "old"}
    assert list(tmp_path.iterdir()) == [target]


def test_a_failed_first_folder_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), atomic_folder(tmp_path / "model"):
        raise RuntimeError("refused")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kill_at", [0, 1, 2])
def test_a_kill_between_the_renames_loses_nothing(tmp_path: Path, kill_at: int) -> None:
    target = tmp_path / "model"
    with atomic_folder(target) as partial:
        (partial / "old").write_text("old")
    program = (
        "import os, sys; from pathlib import Path; from imgcls.system import files\n"
        "calls = []; replace = Path.replace\n"
        "def kill(self, target):\n"
        "    if len(calls) == int(sys.argv[2]): os._exit(9)\n"
        "    calls.append(1); return replace(self, target)\n"
        "Path.replace = kill\n"
        "with files.atomic_folder(Path(sys.argv[1])) as partial: (partial / 'new').write_text('new')\n"
    )
    subprocess.run([sys.executable, "-c", program, target, str(kill_at)], check=False)
    with atomic_folder(tmp_path / "other"):
        pass
    seen = content(target) if target.is_dir() else content(tmp_path / ".model.old")
    assert seen in ({"old": "old"}, {"new": "new"})
    with pytest.raises(RuntimeError), atomic_folder(target):
        raise RuntimeError("the next call puts the old one back first")
    assert content(target) in ({"old": "old"}, {"new": "new"})


def test_a_file_system_without_locks_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.flock", refuse)
    with (tmp_path / "lock").open("w") as file:
        assert take_lock(file, wait=False)
    assert "cannot be locked" in caplog.text


def test_a_read_only_mount_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(Path, "write_bytes", refuse)
    monkeypatch.setattr(Path, "unlink", refuse)
    with pytest.raises(UserError, match="Cannot write"):
        atomic_write_text(tmp_path / "report.html", "x")


def test_yaml_is_plain_values_or_an_error_that_names_the_place(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("lr: 1e-3\nnames: [Käfer, '2']\n", encoding="utf-8")
    assert read_yaml(file) == {"lr": "1e-3", "names": ["Käfer", "2"]}
    for damaged, place in (("a: [1\nb: 2", "line 2"), ("a: !!python/object/apply:os.getcwd []", "line 1")):
        file.write_text(damaged)
        with pytest.raises(ValueError, match=place):
            read_yaml(file)
