"""`python -m imgcls.push run=DIR repo=user/name`: publish a model on the Hugging Face hub.

usage: python -m imgcls.push run=DIR repo=USER/NAME [private=true] [license=apache-2.0] [message=TEXT]

run= is a run folder, or the folder of a portable model. The repository is created where it does not exist, and gets the
portable model, its card, and, where timm has the same network, what timm.create_model("hf-hub:USER/NAME",
pretrained=True) reads. Images are not published. The token is that of `hf auth login`, or HF_TOKEN; HF_ENDPOINT is
another hub than huggingface.co. `predict` and `serve` take the model back with run=hf-hub:USER/NAME, a training starts
from it with model.name=hf-hub:USER/NAME.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from imgcls.cli import Option, announce, boolean, make_callable, read_options, run_command
from imgcls.errors import UserError
from imgcls.system.checks import flag, licence_name

OPTIONS = {
    "run": Option(),
    "repo": Option(),
    "private": Option(None, flag, boolean),
    "license": Option(None, licence_name),
    "message": Option("Add a model of imgcls"),
}
NO_TOKEN = (
    "There is no token of the Hugging Face hub. Make one that may write (Settings, Access Tokens), and give it to "
    "hf auth login, or as HF_TOKEN."
)


def push(
    run: str | Path,
    repo: str,
    *,
    private: bool | None = None,
    licence: str | None = None,
    message: str = "Add a model of imgcls",
) -> str:
    """Publish the model of `run`, and return its address.

    Args:
        run: a run folder, or the folder of a portable model.
        repo: user/name; created if it does not exist.
        private: whether only you see a new repository; None: what your account does by default.
        licence: as the hub names it, on the card; None: that of the run, `export.license`.
        message: of the commit.

    Raises:
        UserError: no model, no token, no network, or the hub refuses it.
    """
    from imgcls.models.hub import check_repository, explain, single_attempt
    from imgcls.runs.run import find_model

    check_repository(repo, f"repo={repo}")
    folder = find_model(str(run))

    from huggingface_hub import HfApi, constants, get_token

    if get_token() is None:
        raise UserError(NO_TOKEN)
    from imgcls.portable.hub_folder import FILES, write_repository

    with tempfile.TemporaryDirectory(prefix="imgcls-push-") as temporary:
        reason = write_repository(folder, Path(temporary), repo, licence)
        stale = [name for name in FILES if not (Path(temporary) / name).is_file()]
        api = HfApi(endpoint=constants.ENDPOINT)
        try:
            with single_attempt():
                api.create_repo(repo, private=private, exist_ok=True)
                api.upload_folder(
                    repo_id=repo, folder_path=temporary, commit_message=message, delete_patterns=stale or None
                )
        except Exception as error:
            raise UserError(f"repo={repo} cannot be written: {explain(error)}") from error
    if reason is not None:
        print(f"timm cannot load it: {reason}. imgcls can.")
    return f"{constants.ENDPOINT}/{repo}"


def _command(arguments: Sequence[str]) -> None:
    options, _, _ = read_options(arguments, OPTIONS, usage=__doc__ or "")
    if options["run"] is None or options["repo"] is None:
        raise UserError("Give a model and a repository: python -m imgcls.push run=DIR repo=USER/NAME")
    announce("loading PyTorch and timm")
    run, repo, licence = options["run"], options["repo"], options["license"]
    print(push(run, repo, private=options["private"], licence=licence, message=options["message"]))
    print(f"try it      python -m imgcls serve run=hf-hub:{repo}")


def main() -> None:
    """Run the command line."""
    run_command(lambda: _command(sys.argv[1:]))


make_callable(__name__, push)

if __name__ == "__main__":
    main()
