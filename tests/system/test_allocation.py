from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

from imgcls.system.allocation import set_policy

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
    environment["NUMPY_MADVISE_HUGEPAGE"] = "0"
    done = subprocess.run(
        [sys.executable, "-c", FAULTS], env=environment | given, capture_output=True, text=True, check=True
    )
    for faults in map(int, done.stdout.split()):
        assert faults < 1000 if keeps else faults > 100_000, "pages that the system had to clear, of 117,000"


@pytest.mark.parametrize("largest", [1 << 40, 1 << 25, 0])
def test_an_older_library_keeps_smaller_blocks_or_stays_as_it_is(largest: int) -> None:
    options: dict[int, int] = {}

    def mallopt(option: int, value: int) -> int:
        if option == -3 and value > largest:
            return 0
        options[option] = value
        return 1

    assert set_policy(mallopt) == bool(options) == bool(largest)
    assert options.get(-3, 0) == min(largest, 1 << 30)
