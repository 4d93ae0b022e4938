"""`python -m imgcls options`: find the options of a training by a word.

usage: python -m imgcls options [WORD …]

Prints the options of `python -m imgcls train` whose group, name or description holds every WORD, with their defaults;
without a word, all of them. A group is a word too: `python -m imgcls options optim`.
"""

from __future__ import annotations

import sys

from imgcls.cli import read_options, run_command
from imgcls.errors import UserError


def _command() -> None:
    _, _, words = read_options(sys.argv[1:], {}, usage=__doc__ or "", others=None)
    from imgcls.config.help import find_options

    found = find_options(words)
    if not found:
        raise UserError(f"No option is about {' '.join(words)}. python -m imgcls train --help lists the groups.")
    print(found)


def main() -> None:
    """Run the command line."""
    run_command(_command)


if __name__ == "__main__":
    main()
