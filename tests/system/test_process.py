"""A command begins and ends quickly; a test, a notebook and a profiler are left as they are."""

from __future__ import annotations

import gc
import subprocess
import sys
from types import ModuleType

import pytest

from imgcls.system.process import importing, is_command


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("python -m imgcls.train optim.lr=1", True),
        ("python -u -m imgcls serve run=a", True),
        ("python bin/imgcls train", True),
        ("python bin/imgcls-train", True),
        ("python", False),
        ("python -m pytest -m imgcls", False),
        ("python -m pdb -m imgcls.train", False),
        ("python bin/coverage run -m imgcls.train", False),
        ("python -c imgcls", False),
        ("python -m imgclsx", False),
    ],
)
def test_what_is_a_command(words: str, expected: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "orig_argv", words.split())
    assert is_command() == expected


@pytest.mark.parametrize("enabled", [True, False])
def test_the_collector_pauses_and_is_as_before(enabled: bool) -> None:
    def fail() -> None:
        with importing():
            assert not gc.isenabled()
            raise ImportError("mine")

    try:
        (gc.enable if enabled else gc.disable)()
        with pytest.raises(ImportError, match="mine"):
            fail()
        assert gc.isenabled() == enabled
    finally:
        gc.enable()


def test_only_in_a_command_new_modules_are_left_out_from_then_on(monkeypatch: pytest.MonkeyPatch) -> None:
    frozen: list[bool] = []
    monkeypatch.setattr(gc, "freeze", lambda: frozen.append(True))
    at_exit: list[object] = []
    monkeypatch.setattr("atexit.register", at_exit.append)
    for command, new, times in [(False, True, 0), (True, False, 0), (True, True, 1)]:
        monkeypatch.setattr("imgcls.system.process.is_command", lambda command=command: command)
        with monkeypatch.context() as patched, importing():
            if new:
                patched.setitem(sys.modules, "heavy", ModuleType("heavy"))
        assert len(frozen) == len(at_exit) == times
    assert at_exit == [gc.unfreeze]


PROGRAM = """
import atexit, sys, threading
from imgcls.system.process import end_process

class Left:
    def __del__(self): print("taken apart")

left = Left()
left.own = left
sys.modules["torch"] = sys
atexit.register(print, "exit function")
threading.Thread(target=lambda: (threading.main_thread().join(), print("thread"))).start()
print("out", end=" ")
end_process(3)
"""


@pytest.mark.parametrize("command", [True, False])
def test_a_command_ends_after_its_threads_and_exit_functions(command: bool) -> None:
    """Of another process the interpreter is left to end as usual."""
    words = ["python", "-m", "imgcls.train" if command else "other"]
    program = f"import sys\nsys.orig_argv = {words}\n{PROGRAM}print('never')"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    lines = ["out thread", "exit function", *["taken apart"] * (not command)]
    assert (done.returncode, done.stdout.splitlines(), done.stderr) == (3, lines, "")
