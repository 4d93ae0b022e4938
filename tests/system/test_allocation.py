from __future__ import annotations

import ctypes
import os
import platform
import subprocess
import sys
from types import SimpleNamespace

import pytest

from imgcls.system.allocation import keep_freed_memory

FAULTS = """
import resource, threading
import numpy as np
from imgcls.system.allocation import keep_freed_memory

keep_freed_memory()

def work():
    for _ in range(10):
        np.ones(6_000_000)  # 48 MB

work()
for thread in (threading.Thread(target=work), threading.Thread(target=work)):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    thread.start()
    thread.join()
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
@pytest.mark.parametrize(("given", "keeps"), [({}, True), ({"MALLOC_TOP_PAD_": "0"}, False)])
def test_freed_memory_is_used_again_by_all_threads_unless_the_user_has_chosen(
    given: dict[str, str], keeps: bool
) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    done = subprocess.run(
        [sys.executable, "-c", FAULTS], env=environment | given, capture_output=True, text=True, check=True
    )
    for faults in map(int, done.stdout.split()):
        assert (faults < 1000) == keeps, "pages that the system had to clear, of 117,000"


@pytest.mark.parametrize(("limit", "taken"), [(1 << 31, 1 << 30), (1 << 25, 1 << 25)])
def test_an_older_glibc_is_given_the_largest_blocks_that_it_takes(
    limit: int, taken: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    values: dict[int, int] = {}

    def mallopt(option: int, value: int) -> int:
        if value <= limit:
            values[option] = value
        return int(value <= limit)

    monkeypatch.setattr(ctypes, "CDLL", lambda name: SimpleNamespace(mallopt=mallopt))
    for name in [name for name in os.environ if name.startswith("MALLOC_") or name == "GLIBC_TUNABLES"]:
        monkeypatch.delenv(name)
    keep_freed_memory.__wrapped__()
    assert values == {-3: taken, -1: -1, -8: 1}
