"""Runs the actions of `python -m imgcls.deploy` with their options."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from functools import partial

from imgcls.deploy import batch_command, registry, registry_command, subcommands
from imgcls.deploy.deployment import deploy_to, restore_account_options
from imgcls.deploy.lookup import Values, connect
from imgcls.deploy.options import Options, create_options
from imgcls.deploy.rehearsal import rehearse, serve_here
from imgcls.deploy.source import find_run, find_source
from imgcls.errors import UserError
from imgcls.system.logs import log_to_terminal

ACTIONS: dict[str, Callable[[Values, list[str]], None]] = {
    "deploy": lambda values, more: deploy(create_options(values, more)),
    "test": subcommands.test,
    "rollback": subcommands.roll_back,
    "delete": subcommands.delete,
    "list": subcommands.list_resources,
    "lambda": subcommands.deploy_lambda,
    "policies": subcommands.print_policies,
    "register": registry_command.register,
    "packages": registry_command.list_packages,
    "approve": partial(registry_command.judge, registry.APPROVED),
    "reject": partial(registry_command.judge, registry.REJECTED),
    "batch": batch_command.run,
}


def perform(action: str, values: Values, more: list[str]) -> None:
    """Run one of ACTIONS. Raises UserError."""
    with log_to_terminal(), exit_on_sigterm():
        ACTIONS[action](values, more)


@contextlib.contextmanager
def exit_on_sigterm() -> Iterator[None]:
    """End the command on SIGTERM as on Ctrl-C: not by an ordinary exception, which botocore would handle."""

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
    if options.target != "aws" and not options.run:
        raise UserError(f"target={options.target} needs a local run: python -m imgcls.jobs fetch job=NAME")
    if options.run:
        find_run(options.run)  # its errors are reported before AWS is asked
    if options.target == "local":
        serve_here(options)
    elif options.target == "rehearsal":
        rehearse(options)
    else:
        options = restore_account_options(options)
        account = connect(vars(options), options.role)
        deploy_to(account, options, find_source(account, options))
