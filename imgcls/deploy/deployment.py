"""Creates or updates an endpoint from a run, tests it, and undoes what fails."""

from __future__ import annotations

import logging
import tempfile
from dataclasses import replace
from pathlib import Path

from imgcls.aws.account import Account
from imgcls.aws.costs import hourly_price
from imgcls.deploy import endpoint, probe
from imgcls.deploy.endpoint import MADE, UNCHANGED, UPDATED, Deployment, Plan
from imgcls.deploy.inventory import list_resources
from imgcls.deploy.lookup import delete_command
from imgcls.deploy.names import endpoint_name
from imgcls.deploy.options import ASYNCHRONOUS, SERVERLESS, Options
from imgcls.deploy.record import EndpointRecord
from imgcls.deploy.removal import remove
from imgcls.deploy.requests import instance_type_of, max_instance_count
from imgcls.deploy.samples import Samples, find_samples
from imgcls.deploy.source import Source, check_memory, describe_model, find_run, request_limit
from imgcls.deploy.state import EndpointState, last_words
from imgcls.errors import UserError
from imgcls.serve.archive import write_archive

log = logging.getLogger("imgcls.deploy")


def restore_account_options(options: Options) -> Options:
    """The options with the region and bucket of the run's existing endpoint, where they give none."""
    record = EndpointRecord.read(find_run(options.run)[0]) if options.run else None
    if record is None or (options.name and endpoint_name(options.name) != record.name):
        return options
    return replace(
        options,
        region=options.region or record.region,
        bucket=options.bucket or record.bucket,
        prefix=options.prefix if options.prefix != "imgcls" else record.prefix,
        profile=options.profile or record.profile,
    )


def deploy_to(account: Account, options: Options, source: Source, *, remember: bool = True) -> None:
    """Create or update the endpoint of `source` in the account, and test it.

    Args:
        remember: record the endpoint in the run's folder.

    Raises:
        UserError: AWS refuses, the endpoint fails, or its answers differ from the local model's.
    """
    deployment = Deployment(account, Plan(source.name, options, source.folder.name, source.package))
    samples = load_samples(options, source.folder, request_limit(deployment.mode))
    if deployment.mode == SERVERLESS:
        check_memory(source.model, memory_mb(deployment))
    log.info("%s: %s, %s, %s.", source.name, describe_model(source.model), deployment.mode, account.region)
    log.info("%s", describe_cost(account, deployment))
    deployment.role()  # a missing role is reported before anything is created
    if remember:
        EndpointRecord(source.name, account.region, options.bucket, options.prefix, options.profile).write(
            source.folder
        )
    with tempfile.TemporaryDirectory(prefix="imgcls-") as work:
        archive = None if source.package else write_archive(source.folder, Path(work) / "model.tar.gz")
        done = deployment.put(archive)
    before = deployment.existing.config_name if deployment.existing is not None and done == UPDATED else None
    if not options.wait:
        log.info("AWS continues by itself. Run the same command without wait=false to wait for it.")
        return
    with last_words(
        f"AWS continues by itself, and {source.name} is billed. Run the same command again to resume; to delete it:\n"
        f"  {delete_command(source.name, options)}"
    ):
        deployment.scale(wait_until_ready(deployment, before, made=done == MADE))
    if samples is not None:
        try:
            ask = create_ask(account, source.name, deployment.mode, poll=options.poll)
            run_test(ask, source.model, samples, options.tolerance)
        except UserError as error:
            raise undo(account, deployment, done, error) if done != UNCHANGED else error from error
    if not remember:
        return
    variables = {"AWS_DEFAULT_REGION": options.region, "AWS_PROFILE": options.profile}
    settings = "".join(f"{variable}={value} " for variable, value in variables.items() if value)
    if deployment.mode == ASYNCHRONOUS:
        print(f"{source.name} reads images from S3: boto3's invoke_endpoint_async(InputLocation=…)")
    else:
        print(f"{source.name} answers: {settings}python -m imgcls.predict endpoint={source.name} picture.jpg")
    print(f"It is billed until you delete it: {delete_command(source.name, options)}")


def memory_mb(deployment: Deployment) -> int | None:
    """MB of the serverless endpoint: as requested, or as it is."""
    variant = deployment.existing.variant if deployment.existing is not None else {}
    return deployment.options.memory or (variant.get("ServerlessConfig") or {}).get("MemorySizeInMB")


def wait_until_ready(deployment: Deployment, before: str | None, *, made: bool) -> EndpointState:
    """The endpoint once it answers. Raises UserError if it failed; on_failure=undo removes a new one."""
    try:
        state = deployment.finish()
        deployment.arrived(state, before)
    except UserError as error:
        if made and deployment.options.on_failure == "undo":
            remove_all(deployment.account, deployment.name, deployment.options.poll)
            raise UserError(f"{error}\nThe endpoint was removed.") from error
        raise
    return state


def load_samples(options: Options, run: Path, limit: int) -> Samples | None:
    """The images to test the endpoint with; None if it is not tested. Raises UserError if there are none."""
    if not (options.test and options.wait):
        return None
    samples = find_samples(run, options.pictures, options.samples, limit)
    if samples.too_large:
        log.warning(
            "%d of the %d images in %s exceed the limit of a request, %d MB: the endpoint will refuse such images.",
            samples.too_large,
            samples.total,
            samples.origin,
            limit >> 20,
        )
    return samples


def describe_cost(account: Account, deployment: Deployment) -> str:
    """The maximum cost of the endpoint as a sentence."""
    options = deployment.options
    if deployment.mode == SERVERLESS:
        warm = ", and provisioned concurrency per hour" if options.provisioned else ""
        return f"Requests are billed{warm}: https://aws.amazon.com/sagemaker/pricing"
    kind, count = instance_type_of(options, deployment.existing), max_instance_count(options, deployment.existing)
    if deployment.scaled is not None and options.max_instances is None:
        count = max(count, deployment.scaled.high)
    price = hourly_price(account, kind, "Hosting")
    cost = f"up to {count * price:.2f} USD per hour" if price else "see https://aws.amazon.com/sagemaker/pricing"
    return f"{count} x {kind}, billed as long as the endpoint exists: {cost}."


def create_ask(account: Account, name: str, mode: str, *, poll: float) -> probe.Ask:
    """The function that sends images to the endpoint `name`."""
    if mode != ASYNCHRONOUS:
        return probe.asking(account, name)
    return probe.asking_later(account, name, account.places.uri("async", name, "questions"), poll=min(2.0, poll))


def run_test(ask: probe.Ask, model: Path, samples: Samples, tolerance: float) -> None:
    """Send the samples, and print the comparison with the portable model in the folder `model`. Raises UserError."""
    log.info("Testing with %d images of %s.", len(samples.pictures), samples.origin)
    print(f"test: {probe.compare(ask, model, samples.pictures, tolerance)}")


def undo(account: Account, deployment: Deployment, done: str, error: UserError) -> UserError:
    """Undo the deployment if on_failure=undo; the error of its test, extended by what was done."""
    name, options = deployment.name, deployment.options
    if options.on_failure != "undo":
        return UserError(f"{error}\nThe endpoint stays and is billed: {delete_command(name, options)}")
    try:
        if done == UPDATED:
            return UserError(f"{error}\nRolled back to {endpoint.roll_back(account, name, poll=options.poll)}.")
        remove_all(account, name, options.poll)
    except UserError as failed:
        return UserError(f"{error}\n{failed}\nThe endpoint is billed: {delete_command(name, options)}")
    return UserError(f"{error}\nThe endpoint was removed.")


def remove_all(account: Account, name: str, poll: float) -> None:
    """Remove the endpoint and everything that belongs to it."""
    remove(account, list_resources(account, name, []), poll=poll, report=lambda line: log.info("%s", line))
