"""Deployments that need no account: `target=local` and `target=rehearsal`."""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imgcls.aws.refusals import explain_refusals
from imgcls.deploy import probe
from imgcls.deploy.deployment import deploy_to, pictures_for
from imgcls.deploy.options import SERVERLESS, Options
from imgcls.deploy.source import REQUEST_LIMIT, Source, describe_source
from imgcls.errors import UserError

if TYPE_CHECKING:
    from imgcls.aws.account import Account

log = logging.getLogger("imgcls.deploy")

ROLE = "arn:aws:iam::123456789012:role/rehearsal"
POLL = 0.3  # seconds


def serve_here(options: Options, source: Source) -> None:
    """`target=local`: pack the model, unpack it, serve it, ask it; go on serving unless `wait=false`."""
    from imgcls.serve.archive import write_archive
    from imgcls.serve.local import serve_archive

    samples = pictures_for(replace(options, wait=True), source, REQUEST_LIMIT)
    with tempfile.TemporaryDirectory(prefix="imgcls-") as work:
        archive = write_archive(source.folder, Path(work) / "model.tar.gz")
        size = archive.stat().st_size / 1e6
        log.info("%s: model.tar.gz has %.1f MB.", describe_source(source), size)
        with serve_archive(archive, options.environment, options.port if options.wait else 0) as container:
            log.info("Serving what is in it, through %s, on %s", container.caller, container.url)
            if samples is not None:
                log.info("Asking with %d pictures of %s.", len(samples.pictures), samples.where)

                def ask(content: bytes, accept: str) -> bytes:
                    from imgcls.serve.client import Client

                    return Client(container.url).invoke(content, probe.KIND, accept)

                print(f"test: {probe.compare(ask, source.model, samples.pictures, options.tolerance)}")
            if not options.wait:
                return
            print(f"{container.url}/invocations answers until Ctrl-C.", flush=True)
            try:
                while container.process.poll() is None:
                    time.sleep(0.5)
            except (KeyboardInterrupt, SystemExit):
                return
            raise UserError("The process that served the model has ended.")


def rehearse(options: Options, source: Source, then: Callable[[Account], None] | None = None) -> None:
    """`target=rehearsal`: the whole way of an endpoint, in an account of AWS that is this process.

    Args:
        options: of the deployment.
        source: what is deployed.
        then: called with the account at the end, before it is gone.
    """
    from imgcls.aws.account import Account
    from imgcls.deploy import endpoint, inventory, removal
    from imgcls.launch.rehearsal.aws import LocalAws
    from imgcls.launch.rehearsal.endpoints import Endpoints

    here = replace(options, poll=POLL, wait=True, role=options.role or ROLE, bucket=None)
    with LocalAws(_no_jobs, lambda name: None) as aws:
        endpoints = Endpoints(aws)
        try:
            account = Account(aws.session(), role=here.role, prefix=here.prefix)
            _step("Deploy")
            deploy_to(account, here, source, remember=False)
            _step("Update: the same model with another setting, without downtime")
            deploy_to(account, changed(here), source, remember=False)
            _step("Roll back")
            print(f"{source.name} has {endpoint.roll_back(account, source.name, poll=POLL)} again.")
            _put_in_front(account, here, source)
            _step("What there is, and away with it")
            found = inventory.inventory(account)
            removal.remove(account, found, poll=POLL, say=print)
            left = inventory.inventory(account)
            if left:
                raise UserError(f"The rehearsal left behind: {', '.join(one.name for one in left)}")
            print(f"{len(aws.calls)} requests were sent, all to this machine. Nothing is left.")
            if then is not None:
                then(account)
        finally:
            endpoints.close()


def changed(options: Options) -> Options:
    """The options of an update that is small, and that each kind of endpoint knows."""
    if options.mode == SERVERLESS:
        return replace(options, concurrency=(options.concurrency or 5) + 1)
    return replace(options, instance_count=(options.instance_count or 1) + 1)


def _put_in_front(account: Account, options: Options, source: Source) -> None:
    """A Lambda function, asked with a picture; asynchronous endpoints have no answer for it."""
    from imgcls.deploy.function import FunctionOptions, ask, deploy_function

    samples = pictures_for(options, source, 4 << 20)
    if options.mode == "asynchronous" or samples is None:
        return
    _step("A Lambda function in front")
    wanted = FunctionOptions(source.name, source.name, make_role=True, provisioned=1, url="iam", poll=POLL)
    made = deploy_function(account, wanted)
    with explain_refusals(f"ask the function {made.name}"):
        best: dict[str, Any] = ask(account, made.name, samples.pictures[0].content)["predictions"][0]["classes"][0]
    print(f"{made.name}, version {made.version}: {samples.pictures[0].name} is {best['class']}.")


def _step(text: str) -> None:
    print(f"\n{text}", flush=True)


def _no_jobs(request: dict[str, Any]) -> None:
    raise UserError("This rehearsal has no training jobs.")
