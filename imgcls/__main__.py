"""`python -m imgcls COMMAND …`, or `imgcls COMMAND …`: all commands behind one name."""

from __future__ import annotations

import importlib
import sys

from imgcls import __version__
from imgcls.cli import run_command
from imgcls.errors import UserError, nearest

COMMANDS = {
    "prepare": "decode and check a data set before it is trained on",
    "train": "fine-tune a network; -m runs sweeps and searches",
    "options": "find the options of a training by a word",
    "evaluate": "measure a run's model on any images",
    "audit": "wrong labels, copies and poor images of a run, and what causes its errors",
    "predict": "classify images",
    "embed": "write the features of images",
    "extend": "add a class to a model without training",
    "soup": "average runs that began from the same weights",
    "export": "write a run's portable model again",
    "verify": "compare an exported model with the trained network on any images",
    "push": "publish a run's model on the Hugging Face hub",
    "report": "write the report of a run, or compare runs",
    "serve": "answer images over HTTP, with a page to try it",
    "monitor": "whether the images in use are still like those of validation",
    "deploy": "an endpoint of Amazon SageMaker, or a Lambda function",
    "jobs": "the training jobs in Amazon SageMaker",
    "cache": "what decoded images take on the disk, and removing them",
    "doctor": "what this machine has, and what is missing",
}


def usage() -> str:
    """What `--help` prints."""
    commands = "\n".join(f"  {name:<10} {about}" for name, about in COMMANDS.items())
    return (
        f"imgcls {__version__}: fine-tune image classifiers, and know what every run did.\n\n"
        f"usage: imgcls COMMAND …, or python -m imgcls COMMAND …\n\n{commands}\n\n"
        "imgcls COMMAND --help explains a command."
    )


def main() -> None:
    """Run the command line."""
    name, *rest = sys.argv[1:] or ["--help"]
    if name in COMMANDS:
        is_package = name in ("audit", "report", "serve", "deploy")
        module = importlib.import_module(f"imgcls.{name}{'.__main__' if is_package else ''}")
        sys.argv = [f"imgcls {name}", *rest]
        module.main()
        return
    run_command(lambda: _answer(name))


def _answer(name: str) -> None:
    if name in ("-h", "--help", "help"):
        print(usage())
    elif name in ("-V", "--version", "version"):
        print(f"imgcls {__version__}")
    elif "=" in name:
        raise UserError(f"{name}: the command is missing, as in imgcls train {name}")
    else:
        raise UserError(f"Unknown command {name!r}. {nearest(name, COMMANDS)}")


if __name__ == "__main__":
    main()
