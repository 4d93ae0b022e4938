"""An endpoint made or updated from a run, tested, and undone where it fails."""

from __future__ import annotations

import logging
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imgcls.deploy.lookup import delete_command
from imgcls.deploy.options import SERVERLESS, Options
from imgcls.deploy.record import EndpointRecord
from imgcls.errors import UserError

if TYPE_CHECKING:
    from imgcls.aws.account import Account
    from imgcls.deploy.endpoint import Deployment
    from imgcls.deploy.samples import Samples
    from imgcls.deploy.source import Source

log = logging.getLogger("imgcls.deploy")


def remembered(options: Options, source: Source | None) -> Options:
    """The options with the region and bucket in which the run's endpoint is."""
    record = EndpointRecord.read(source.folder) if source is not None else None
    if record is None or source is None or record.name != source.name:
        return options
    return replace(
        options,
        region=options.region or record.region,
        bucket=options.bucket or record.bucket,
        prefix=options.prefix if options.prefix != "imgcls" else record.prefix,
        profile=options.profile or record.profile,
    )


def job_source(account: Account, options: Options) -> Source:
    """The run of the job that the options name."""
    from imgcls.deploy.source import source_of_job

    return source_of_job(account, options)


def deploy_to(account: Account, options: Options, source: Source, *, remember: bool = True) -> None:
    """Make or update the endpoint of `source` in the account, and test it.

    Args:
        account: what is asked.
        options: of the command.
        source: the run.
        remember: note in the run's folder which endpoint it has.

    Raises:
        UserError: what AWS refuses, or an endpoint that fails or answers otherwise than the model here.
    """
    from imgcls.deploy.endpoint import MADE, UNCHANGED, UPDATED, Deployment, Plan
    from imgcls.deploy.source import check_memory, describe_source, request_limit
    from imgcls.serve.archive import write_archive

    deployment = Deployment(account, Plan(source.name, options, source.folder.name))
    samples = pictures_for(options, source, request_limit(deployment.mode))
    if deployment.mode == SERVERLESS:
        check_memory(source.model, memory_of(deployment))
    log.info("%s: %s, %s, %s.", source.name, describe_source(source), deployment.mode, account.region)
    log.info("%s", cost(account, deployment))
    deployment.role()  # what is missing is said before anything is made
    if remember:
        EndpointRecord(source.name, account.region, options.bucket, options.prefix, options.profile).write(
            source.folder
        )
    try:
        with tempfile.TemporaryDirectory(prefix="imgcls-") as work:
            done = deployment.put(write_archive(source.folder, Path(work) / "model.tar.gz"))
        before = deployment.there.config_name if deployment.there is not None and done == UPDATED else None
        if not options.wait:
            log.info("It goes on by itself; the same command without wait=false goes on with it.")
            return
        found = finished(deployment, before, made=done == MADE)
        deployment.scale(found)
    except (KeyboardInterrupt, SystemExit):
        log.warning(
            "%s goes on being made, and costs. The same command goes on with it; to end it:\n  %s",
            source.name,
            delete_command(source.name, options),
        )
        raise
    if samples is not None:
        try:
            tested(account, deployment, source, samples)
        except UserError as error:
            raise undone(account, deployment, done, error) if done != UNCHANGED else error from error
    if not remember:
        return
    given = {"AWS_DEFAULT_REGION": options.region, "AWS_PROFILE": options.profile}
    before_it = "".join(f"{variable}={value} " for variable, value in given.items() if value)
    if deployment.asynchronous:
        print(f"{source.name} takes pictures from S3: boto3's invoke_endpoint_async(InputLocation=…)")
    else:
        print(f"{source.name} answers: {before_it}python -m imgcls.predict endpoint={source.name} picture.jpg")
    print(f"It costs until you end it: {delete_command(source.name, options)}")


def memory_of(deployment: Deployment) -> int | None:
    """MB of the serverless endpoint that is asked for, or that is there."""
    there = deployment.there.variant if deployment.there is not None else {}
    return deployment.options.memory or (there.get("ServerlessConfig") or {}).get("MemorySizeInMB")


def finished(deployment: Deployment, before: str | None, *, made: bool) -> Any:
    """The endpoint when it answers. Raises UserError where it failed; what was made is removed, if so asked."""
    try:
        found = deployment.finish()
        deployment.arrived(found, before)
    except UserError as error:
        if made and deployment.options.on_failure == "undo":
            remove_all(deployment.account, deployment.name, deployment.options.poll)
            raise UserError(f"{error}\nIt was removed again.") from error
        raise
    return found


def pictures_for(options: Options, source: Source, limit: int) -> Samples | None:
    """What the endpoint is to be asked with; None where it is not tested. Raises UserError where there is nothing."""
    from imgcls.deploy.samples import find_samples

    if not (options.test and options.wait):
        return None
    samples = find_samples(source.folder, options.pictures, options.samples, limit)
    if samples.too_large:
        log.warning(
            "%d of the %d pictures in %s are larger than a request may be, %d MB: the endpoint will refuse such.",
            samples.too_large,
            samples.seen,
            samples.where,
            limit >> 20,
        )
    return samples


def cost(account: Account, deployment: Deployment) -> str:
    """What the endpoint costs at most, in words."""
    from imgcls.aws.costs import hourly_price
    from imgcls.deploy.requests import machine, most_machines

    options = deployment.options
    if deployment.mode == SERVERLESS:
        warm = ", and by the hour for what is kept warm" if options.provisioned else ""
        return f"It costs by the request{warm}: https://aws.amazon.com/sagemaker/pricing"
    kind, most = machine(options, deployment.there), most_machines(options, deployment.there)
    if deployment.scaled is not None and options.max_instances is None:
        most = max(most, deployment.scaled.high)
    price = hourly_price(account, kind, "Hosting")
    known = f"{most * price:.2f} USD an hour at most" if price else "see https://aws.amazon.com/sagemaker/pricing"
    return f"{most} x {kind}, for as long as it is there: {known}."


def tested(account: Account, deployment: Deployment, source: Source, samples: Samples) -> None:
    """Ask the endpoint, and compare. Raises UserError where it answers otherwise than the model here."""
    from imgcls.deploy import probe

    options = deployment.options
    if deployment.asynchronous:
        ask = probe.asking_later(account, deployment.name, deployment.questions, poll=min(2.0, options.poll))
    else:
        ask = probe.asking(account, deployment.name)
    log.info("Asking with %d pictures of %s.", len(samples.pictures), samples.where)
    print(f"test: {probe.compare(ask, source.model, samples.pictures, options.tolerance)}")


def undone(account: Account, deployment: Deployment, done: str, error: UserError) -> UserError:
    """The error of the test, with what was done about it."""
    from imgcls.deploy import endpoint

    name, options = deployment.name, deployment.options
    if options.on_failure != "undo":
        return UserError(f"{error}\nThe endpoint stays, and costs: {delete_command(name, options)}")
    if done == endpoint.UPDATED:
        back = endpoint.roll_back(account, name, poll=options.poll)
        return UserError(f"{error}\nThe endpoint is back at {back}.")
    remove_all(account, name, options.poll)
    return UserError(f"{error}\nIt was removed again.")


def remove_all(account: Account, name: str, poll: float) -> None:
    """The endpoint with all that belongs to it."""
    from imgcls.deploy.inventory import inventory
    from imgcls.deploy.removal import remove

    remove(account, inventory(account, name), poll=poll, say=lambda line: log.info("%s", line))
