"""An endpoint made, updated, rolled back. What is there already is gone on with: the command may have been killed."""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass
from pathlib import Path

from imgcls.aws.account import Account
from imgcls.aws.naming import RUN_TAG
from imgcls.aws.refusals import explain_refusals
from imgcls.aws.upload import upload_file
from imgcls.deploy import requests, scaling
from imgcls.deploy.names import ENDPOINT_TAG, PREVIOUS_TAG, SCALING_TAG, as_list, numbered, tag_text, tags_of
from imgcls.deploy.options import ASYNCHRONOUS, SERVERLESS, Options
from imgcls.deploy.state import BUSY, Deployed, deployed, described, gone, needed, settle, tags_at, why
from imgcls.errors import UserError

log = logging.getLogger(__name__)

MADE, UPDATED, UNCHANGED = "made", "updated", "unchanged"


@dataclass(frozen=True)
class Plan:
    """What is to be deployed.

    Attributes:
        name: of the endpoint.
        options: of the command.
        source: what it was made of, for the tags.
    """

    name: str
    options: Options
    source: str


class Deployment:
    """The steps of a deployment; each finds what it would make, if it is there.

    Args:
        account: what is asked.
        plan: what is to be deployed.
    """

    def __init__(self, account: Account, plan: Plan) -> None:
        self.account, self.plan, self.options, self.name = account, plan, plan.options, plan.name
        self.there = self._settled()
        self.mode = requests.chosen_mode(self.options, self.there)
        self.scaled = scaling.noted(tags_at(account, self.there.arn)) if self.there is not None else None

    def _settled(self) -> Deployed | None:
        """The endpoint as it is; one that could not be started is removed, because AWS cannot update it."""
        there = deployed(self.account, self.name)
        if there is not None and there.status in BUSY:
            there = settle(self.account, self.name, poll=self.options.poll)
        if there is not None and there.status == "Failed":
            log.warning("%s is there, and %s: it is deleted and made again.", self.name, there.status)
            scaling.unscale(self.account, self.name)
            delete_endpoint(self.account, self.name, poll=self.options.poll)
            there = None
        return there

    def put(self, archive: Path) -> str:
        """Make the endpoint of the model.tar.gz `archive`, or update it; without waiting. Returns what was done."""
        role = self.role()
        image = requests.image_for(self.options, self.there, self.account.region, self.mode)
        uploaded = self.upload(archive)
        model = self.make(
            "model",
            requests.model_request(self.options, self.there, archive=uploaded, role=role, image=image, mode=self.mode),
        )
        config = self.make(
            "endpoint-config",
            requests.config_request(
                self.options,
                self.there,
                model=model,
                mode=self.mode,
                output=self.account.places.uri("async", self.name, "answers"),
                captured=self.account.places.uri("captured", self.name),
            ),
        )
        if self.there is None:
            self._create(config)
            return MADE
        if self.there.config_name == config:
            log.info("%s has this model and this configuration already.", self.name)
            return UNCHANGED
        count = int(self.there.variant.get("InitialInstanceCount") or 1)
        self._update(config, max(count, self.options.instance_count or 1))
        return UPDATED

    def role(self) -> str:
        """ARN of the role that is asked for, or that the endpoint has."""
        if self.options.role is None and self.there is not None and self.there.model.get("ExecutionRoleArn"):
            return str(self.there.model["ExecutionRoleArn"])
        return self.account.role_arn

    def upload(self, archive: Path) -> str:
        """The archive's address in S3, where each content has a place of its own."""
        with archive.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        uri = archive_place(self.account, self.name, digest)
        upload_file(archive, uri, self.account.client("s3"), extra=self.account.encryption)
        return uri

    def make(self, kind: str, request: requests.Request) -> str:
        """Make a model or endpoint configuration, unless the same is there. Returns its name."""
        what, operation = {
            "model": ("Model", "create_model"),
            "endpoint-config": ("EndpointConfig", "create_endpoint_config"),
        }[kind]
        name = numbered(self.name, request)
        if not described(self.account, what, name):
            tags = as_list({**self.options.tags, **tags_of(kind, self.name)})
            with explain_refusals(f"make the {kind} {name}"):
                getattr(self.account.client("sagemaker"), operation)(**{f"{what}Name": name}, **request, Tags=tags)
        return name

    def _create(self, config: str) -> None:
        tags = tags_of("endpoint", self.name, {RUN_TAG: tag_text(self.plan.source)})
        with explain_refusals(f"make the endpoint {self.name}"):
            self.account.client("sagemaker").create_endpoint(
                EndpointName=self.name, EndpointConfigName=config, Tags=as_list({**self.options.tags, **tags})
            )
        log.info("Made the endpoint %s.", self.name)

    def _update(self, config: str, count: int) -> None:
        assert self.there is not None
        alarms = [*self.options.alarms]
        if self.mode != SERVERLESS:
            alarms.append(scaling.watch_errors(self.account, self.name))
        more = requests.deployment_request(self.options, self.mode, count, alarms)
        update(self.account, self.there, config, more)

    def finish(self) -> Deployed:
        """Wait until the endpoint answers. Raises UserError where it failed, and why."""
        found = settle(self.account, self.name, poll=self.options.poll)
        if found is None:
            raise UserError(f"The endpoint {self.name} was deleted by somebody else.")
        if found.status != "InService":
            raise UserError(f"The endpoint {self.name} failed: {why(self.account, found)}")
        return found

    def arrived(self, found: Deployed, before: str | None) -> None:
        """Raise UserError where AWS took an update back, and the endpoint has the configuration `before` again."""
        if before is not None and found.config_name == before:
            raise UserError(
                f"The update of {self.name} failed, and AWS went back to what was there: {why(self.account, found)}"
            )

    def scale(self, found: Deployed) -> None:
        """Set the autoscaling up that is asked for, or that the endpoint had."""
        before = self.scaled
        now = scaling.wanted(self.options, self.mode, before)
        if now is not None:
            note(self.account, found, SCALING_TAG, str(now))
            scaling.scale(self.account, self.name, now, self.mode)
        elif before is not None:
            note(self.account, found, SCALING_TAG, "none")
            scaling.unscale(self.account, self.name)
            log.info("%s is not scaled any more.", self.name)

    @property
    def questions(self) -> str:
        """Where the questions to an asynchronous endpoint are put."""
        return self.account.places.uri("async", self.name, "questions")

    @property
    def asynchronous(self) -> bool:
        """Whether it answers through S3."""
        return self.mode == ASYNCHRONOUS


def archive_place(account: Account, name: str, digest: str) -> str:
    """Where the archive with this SHA-256 is in S3."""
    return account.places.uri("endpoints", name, digest[:16], "model.tar.gz")


def update(account: Account, there: Deployed, config: str, deployment: requests.Request) -> None:
    """Begin to give the endpoint another configuration; what it has now is remembered as the previous one."""
    scaled = scaling.target_of(account, there.name)
    new = described(account, "EndpointConfig", config)["ProductionVariants"][0]
    if scaled and new.get("InstanceType") != there.variant.get("InstanceType"):
        # AWS gives an endpoint no other machine while it is scaled; its tag remembers how it was.
        scaling.unscale(account, there.name)
        scaled = {}
    note(account, there, PREVIOUS_TAG, there.config_name)
    with explain_refusals(f"update the endpoint {there.name}"):
        account.client("sagemaker").update_endpoint(
            EndpointName=there.name,
            EndpointConfigName=config,
            **({"RetainAllVariantProperties": True} if scaled else {}),  # as many machines as there are now
            **({"DeploymentConfig": deployment} if deployment else {}),
        )
    log.info("%s gets the configuration %s.", there.name, config)


def note(account: Account, there: Deployed, tag: str, value: str) -> None:
    """Write `value` on the endpoint."""
    with explain_refusals(f"write on the endpoint {there.name}"):
        account.client("sagemaker").add_tags(ResourceArn=there.arn, Tags=[{"Key": tag, "Value": value}])


def roll_back(account: Account, name: str, *, poll: float) -> str:
    """Give the endpoint the configuration that it had before, and wait. Returns that configuration's name.

    Raises UserError where there is none, or AWS could not.
    """
    there = needed(account, name)
    if there.status in BUSY:
        there = settle(account, name, poll=poll) or needed(account, name)
    previous = previous_config(account, there)
    update(account, there, previous, {})
    found = settle(account, name, poll=poll)
    if found is None or found.status != "InService" or found.config_name != previous:
        raise UserError(f"{name} could not go back: {why(account, found) if found else 'it was deleted'}")
    how = scaling.noted(tags_at(account, found.arn))
    if how is not None and not scaling.target_of(account, name):
        scaling.scale(account, name, how, requests.mode_of(found.config))
    return previous


def previous_config(account: Account, there: Deployed) -> str:
    """The configuration that the endpoint had before; where that is not known, the newest that is older than its own.

    Raises UserError where there is none.
    """
    noted = tags_at(account, there.arn).get(PREVIOUS_TAG)
    if noted and noted != there.config_name and described(account, "EndpointConfig", noted):
        return noted
    made = there.config.get("CreationTime")
    with explain_refusals(f"list the configurations of {there.name}"):
        pages = account.client("sagemaker").get_paginator("list_endpoint_configs")
        found = [
            one
            for page in pages.paginate(NameContains=f"{there.name}-", SortBy="CreationTime", SortOrder="Descending")
            for one in page["EndpointConfigs"]
        ]
    for one in found:
        older = made is None or one["CreationTime"] <= made
        own = tags_at(account, one["EndpointConfigArn"])
        if older and one["EndpointConfigName"] != there.config_name and own.get(ENDPOINT_TAG) == there.name:
            return str(one["EndpointConfigName"])
    raise UserError(f"The endpoint {there.name} has had no other configuration: there is nothing to go back to.")


def delete_endpoint(account: Account, name: str, *, poll: float) -> bool:
    """Delete the endpoint, and wait until it is gone; whether there was one. Raises UserError."""
    client = account.client("sagemaker")
    for _ in range(2):
        with explain_refusals(f"delete the endpoint {name}"):
            try:
                client.delete_endpoint(EndpointName=name)
            except Exception as error:
                if gone(error):
                    return False
                if (getattr(error, "response", None) or {}).get("Error", {}).get("Code") != "ValidationException":
                    raise
                log.info("%s is being changed; it can be deleted when that has ended.", name)
        if settle(account, name, poll=poll, whole=False) is None:
            return True
    raise UserError(f"The endpoint {name} is not deleted; try again in some minutes.")
