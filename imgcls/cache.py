"""`python -m imgcls.cache`: what decoded images, features and fetched shards take on the disk; removing what is unused.

usage: python -m imgcls.cache [list]                          every store, the least recently used first
       python -m imgcls.cache prune [limit=50GB] [days=N]     remove stores until at most `limit` is left
                                                              (default: none), of those not used for N days

What a running command uses stays. What is removed is built or fetched again when it is needed; downloaded data sets are
not touched. The cache is in $IMGCLS_CACHE, or ~/.cache/imgcls.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence

from imgcls.cli import Option, guarded, read_options
from imgcls.errors import UserError, nearest
from imgcls.system.cache import Entry, cache_folder, entries, remove
from imgcls.system.checks import number, parse_bytes
from imgcls.system.machine import free_disk

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
        days = (time.time() - entry.used) / 86_400
        state = ", incomplete" if entry.is_partial else ""
        print(f"{entry.nbytes / 1e9:9.3f} GB  used {days:6.1f} days ago  {entry.folder}{state}")
    total = sum(entry.nbytes for entry in found)
    print(
        f"{total / 1e9:9.3f} GB in {len(found)} stores, {free_disk(cache_folder()) / 1e9:.1f} GB of the disk are free."
    )


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
    return f"Removed {count} of {len(found)} stores, {removed / 1e9:.3f} GB; {left / 1e9:.3f} GB are left.{note}"


def main() -> None:
    """Run the command line."""
    sys.exit(guarded(lambda: cache(sys.argv[1:])))


if __name__ == "__main__":
    main()
