"""`python -m imgcls.cache`: what is kept on the disk, such as decoded images and fetched shards; removing it if unused.

usage: python -m imgcls.cache [list]                          all that is kept, the least recently used first
       python -m imgcls.cache prune [limit=50GB] [days=N]     remove what was not used for N days, until at most
                                                              `limit` is left (default: nothing)

What a running command uses stays. What is removed is built or fetched again when it is needed; downloaded data sets are
not touched. The cache is in $IMGCLS_CACHE, or ~/.cache/imgcls.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence

from imgcls.cli import Option, read_options, run_command
from imgcls.errors import UserError, nearest
from imgcls.system.cache import FILES, Entry, cache_folder, entries, remove
from imgcls.system.checks import number, parse_bytes
from imgcls.system.machine import free_disk
from imgcls.system.text import duration, format_bytes

OPTIONS = {"limit": Option(0.0, number(0), parse_bytes), "days": Option(0.0, number(0), float)}
ACTIONS = ("list", "prune")


def cache(arguments: Sequence[str]) -> None:
    """List or prune the cache."""
    options, _, actions = read_options(arguments, OPTIONS, usage=__doc__ or "", others=1)
    action = actions[0] if actions else "list"
    if action not in ACTIONS:
        raise UserError(f"{action}: {nearest(action, ACTIONS)}")
    found = entries(cache_folder())
    if action == "prune":
        print(prune(found, options["limit"], options["days"]))
        return
    for entry in found:
        if entry.kind not in FILES:
            print(_line(entry.nbytes, entry.used, f"{entry.path}{', incomplete' if entry.is_partial else ''}"))
    for kind in FILES:
        if files := [entry for entry in found if entry.kind == kind]:
            use = max(entry.used for entry in files)
            count = "1 file" if len(files) == 1 else f"{len(files):,} files"
            print(_line(sum(entry.nbytes for entry in files), use, f"{files[0].path.parent}, {count}"))
    total, free = sum(entry.nbytes for entry in found), free_disk(cache_folder())
    print(f"{format_bytes(total)} in {len(found):,} folders and files; {format_bytes(free)} of the disk are free.")


def _line(nbytes: float, used: float, what: str) -> str:
    age = max(0.0, time.time() - used)
    ago = f"{age / 86_400:.0f} days" if age >= 2 * 86_400 else duration(age)
    return f"{format_bytes(nbytes):>10}  used {ago:>11} ago  {what}"


def prune(found: Sequence[Entry], limit: float, days: float) -> str:
    """Remove the first of `found` until at most `limit` bytes are left; return what was done, in a sentence.

    Args:
        found: the least recently used first.
        limit: bytes.
        days: those that were used since are kept.
    """
    left, removed, in_use = sum(entry.nbytes for entry in found), 0, 0
    count = 0
    for entry in found:
        if left <= limit or entry.used > time.time() - 86_400 * days:
            break
        if remove(entry):
            left, removed, count = left - entry.nbytes, removed + entry.nbytes, count + 1
        else:
            in_use += 1
    note = f" {in_use} are in use." if in_use else ""
    done = f"Removed {count:,} of {len(found):,} folders and files, {format_bytes(removed)}"
    return f"{done}; {format_bytes(left)} are left.{note}"


def main() -> None:
    """Run the command line."""
    run_command(lambda: cache(sys.argv[1:]))


if __name__ == "__main__":
    main()
