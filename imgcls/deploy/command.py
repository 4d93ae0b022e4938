"""What `python -m imgcls.deploy` does with its options: which form, and where the endpoint is made."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator

from imgcls.deploy.deployment import deploy_to, job_source, remembered
from imgcls.deploy.lookup import Values, connect
from imgcls.deploy.options import Options, create_options
from imgcls.errors import UserError
from imgcls.system.logs import talking


def perform(action: str, values: Values, more: list[str]) -> None:
    """Do what `action` says. Raises UserError."""
    from imgcls.deploy import subcommands

    with talking(), ending():
        if action == "deploy":
            deploy(create_options(values, more))
        else:
            forms: dict[str, Callable[[Values, list[str]], None]] = {
                "test": subcommands.test,
                "rollback": subcommands.roll_back,
                "delete": subcommands.delete,
                "list": subcommands.show,
                "lambda": subcommands.put_function,
                "policies": subcommands.policies,
            }
            forms[action](values, more)


@contextlib.contextmanager
def ending() -> Iterator[None]:
    """SIGTERM ends the command as Ctrl-C does: by no ordinary exception, which botocore would take for its own."""

    def end(signum: int, frame: object) -> None:
        raise SystemExit(128 + signum)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def deploy(options: Options) -> None:
    """`python -m imgcls.deploy run=…`."""
    from imgcls.deploy.source import source_of_run

    if options.target != "aws" and options.job:
        raise UserError(f"target={options.target} needs a run of this machine: python -m imgcls.jobs fetch job=NAME")
    if options.target == "local":
        from imgcls.deploy.rehearsal import serve_here

        serve_here(options, source_of_run(options))
    elif options.target == "rehearsal":
        from imgcls.deploy.rehearsal import rehearse

        rehearse(options, source_of_run(options))
    else:
        source = source_of_run(options) if options.run else None  # what is wrong with it is said before AWS is asked
        options = remembered(options, source)
        account = connect(vars(options), options.role)
        deploy_to(account, options, source or job_source(account, options))
