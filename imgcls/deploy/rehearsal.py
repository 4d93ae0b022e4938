"""Deployments without an AWS account: `target=local` and `target=rehearsal`."""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from imgcls.aws.account import Account
from imgcls.aws.refusals import explain_refusals
from imgcls.aws.s3 import split_uri
from imgcls.deploy import endpoint, probe, registry, requests
from imgcls.deploy.batch_command import transform
from imgcls.deploy.deployment import deploy_to, load_samples, run_test
from imgcls.deploy.function import FunctionOptions, ask, deploy_function
from imgcls.deploy.inventory import list_resources
from imgcls.deploy.options import ASYNCHRONOUS, REAL_TIME, SERVERLESS, Options
from imgcls.deploy.removal import remove
from imgcls.deploy.source import REQUEST_LIMIT, SERVERLESS_LIMIT, Source, describe_model, find_run, source_of_run
from imgcls.errors import UserError
from imgcls.launch.rehearsal.aws import ROLE, LocalAws
from imgcls.launch.rehearsal.endpoints import Endpoints
from imgcls.serve.archive import write_archive
from imgcls.serve.client import Client
from imgcls.serve.local import serve_archive

log = logging.getLogger("imgcls.deploy")

POLL_SECONDS = 0.3


def serve_here(options: Options) -> None:
    """`target=local`: pack the model, serve the archive, test it; continue serving unless `wait=false`."""
    run, model = find_run(str(options.run))
    samples = load_samples(replace(options, wait=True), run, REQUEST_LIMIT)
    with tempfile.TemporaryDirectory(prefix="imgcls-") as work:
        archive = write_archive(run, Path(work) / "model.tar.gz")
        log.info("%s: model.tar.gz has %.1f MB.", describe_model(model), archive.stat().st_size / 1e6)
        with serve_archive(archive, options.environment, options.port if options.wait else 0) as container:
            log.info("Serving it with %s on %s", container.caller, container.url)
            if samples is not None:
                client = Client(container.url)
                run_test(
                    lambda content, accept: client.invoke(content, probe.KIND, accept),
                    model,
                    samples,
                    options.tolerance,
                )
            if not options.wait:
                return
            print(f"{container.url}/invocations answers until Ctrl-C.", flush=True)
            try:
                while container.process.poll() is None:
                    time.sleep(0.5)
            except (KeyboardInterrupt, SystemExit):
                return
            raise UserError("The process that served the model has ended.")


def rehearse(options: Options, then: Callable[[Account], None] | None = None) -> None:
    """`target=rehearsal`: the full life of an endpoint, in a simulated AWS account in this process.

    `then` is called with the account at the end, before it is closed.
    """
    here = replace(options, poll=POLL_SECONDS, wait=True, role=options.role or ROLE, bucket=None)
    with LocalAws(_no_jobs, lambda name: None, strict=True) as aws:
        endpoints = Endpoints(aws)
        try:
            aws.add_role(str(here.role))  # a rehearsal has every role
            account = Account(aws.session(), role=here.role, prefix=here.prefix)
            source = source_of_run(account, str(options.run), options.name)
            _step("Deploy")
            deploy_to(account, here, source, remember=False)
            _step("Update: the same model with different settings, without downtime")
            deploy_to(account, change_size(here), source, remember=False)
            _step("Roll back")
            print(f"Rolled {source.name} back to {endpoint.roll_back(account, source.name, poll=POLL_SECONDS)}.")
            _rehearse_function(account, here, source)
            _rehearse_registry(account, here, source)
            _step("List and delete all resources")
            remove(account, list_resources(account), poll=POLL_SECONDS, report=print)
            left = list_resources(account)
            if left:
                raise UserError(f"The rehearsal did not remove: {', '.join(resource.name for resource in left)}")
            print(f"{len(aws.calls)} requests were sent, all to this machine. All resources are deleted.")
            if then is not None:
                then(account)
        finally:
            endpoints.close()


def change_size(options: Options) -> Options:
    """The options of a small update that every mode supports."""
    if options.mode == SERVERLESS:
        return replace(options, concurrency=(options.concurrency or 5) + 1)
    return replace(options, instance_count=(options.instance_count or 1) + 1)


def _rehearse_function(account: Account, options: Options, source: Source) -> None:
    """Test a Lambda function with an image, except for asynchronous endpoints."""
    samples = load_samples(options, source.folder, SERVERLESS_LIMIT)
    if options.mode == ASYNCHRONOUS or samples is None:
        return
    _step("Put a Lambda function in front")
    function = FunctionOptions(source.name, source.name, make_role=True, provisioned=1, url="iam", poll=POLL_SECONDS)
    made = deploy_function(account, function)
    with explain_refusals(f"invoke the function {made.name}"):
        best: dict[str, Any] = ask(account, made.name, samples.pictures[0].content)["predictions"][0]["classes"][0]
    print(f"{made.name}, version {made.version}: {samples.pictures[0].name} is {best['class']}.")


def _rehearse_registry(account: Account, options: Options, source: Source) -> None:
    """Register the model, approve it, and classify the samples by a transform job of the approved version."""
    samples = load_samples(options, source.folder, REQUEST_LIMIT)
    if samples is None:
        return
    _step("Register a version, approve it, and let it classify a folder of images in S3")
    with tempfile.TemporaryDirectory(prefix="imgcls-") as work:
        archive = write_archive(source.folder, Path(work) / "model.tar.gz")
        image = requests.select_image(options, None, account.region, options.mode or REAL_TIME)
        package = registry.register(account, source.folder, source.model, source.name, archive, image=image, tags={})
        registry.set_status(account, package, registry.APPROVED, "rehearsed")
        place = account.places.uri("rehearsal")
        bucket, prefix = split_uri(place)
        for number, sample in enumerate(samples.pictures):
            key = f"{prefix}/{number}{Path(sample.name).suffix or '.jpg'}"
            account.client("s3").put_object(Bucket=bucket, Key=key, Body=sample.content)
        version = replace(source, package=package.arn)
        here = replace(options, instance_type=None, instance_count=1)  # not all types of endpoints run batches
        transform(account, here, version, place, answers=Path(work) / "answers.jsonl")


def _step(text: str) -> None:
    print(f"\n{text}", flush=True)


def _no_jobs(request: dict[str, Any]) -> None:
    raise UserError("A rehearsal of an endpoint cannot run training jobs.")
