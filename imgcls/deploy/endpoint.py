"""Creates, updates and rolls back endpoints. Existing resources are reused: an earlier command may have been killed."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from imgcls.aws.account import Account
from imgcls.aws.naming import RUN_TAG
from imgcls.aws.refusals import error_code, explain_refusals, is_denied
from imgcls.aws.upload import upload_file
from imgcls.deploy import requests, scaling
from imgcls.deploy.lookup import delete_command
from imgcls.deploy.names import ENDPOINT_TAG, PREVIOUS_TAG, SCALING_TAG, as_list, name_by_content, tag_text, tags_of
from imgcls.deploy.options import SERVERLESS, Options
from imgcls.deploy.state import (
    BUSY,
    EndpointState,
    describe_resource,
    explain_failure,
    find_endpoint,
    get_endpoint,
    is_missing,
    read_tags_of,
    wait_until_settled,
)
from imgcls.errors import UserError
from imgcls.launch.sagemaker.progress import warn_if_created
from imgcls.system.files import sha256_of

log = logging.getLogger(__name__)

MADE, UPDATED, UNCHANGED = "made", "updated", "unchanged"


@dataclass(frozen=True)
class Plan:
    """What to deploy.

    Attributes:
        name: of the endpoint.
        source: name of the run, for the tags.
        package: ARN of the registered version to deploy, in place of an archive.
    """

    name: str
    options: Options
    source: str
    package: str | None = None


class Deployment:
    """The steps of a deployment; each reuses what exists already."""

    def __init__(self, account: Account, plan: Plan) -> None:
        self.account, self.plan, self.options, self.name = account, plan, plan.options, plan.name
        self.existing = self._find_existing()
        self.mode = requests.select_mode(self.options, self.existing)
        self.scaled = scaling.recorded_scaling(account, self.existing) if self.existing is not None else None

    def _find_existing(self) -> EndpointState | None:
        """The existing endpoint; one that failed to start is deleted, because AWS cannot update it."""
        existing = find_endpoint(self.account, self.name)
        if existing is not None and existing.status in BUSY:
            existing = wait_until_settled(self.account, self.name, poll=self.options.poll)
        if existing is not None and existing.status == "Failed":
            log.warning("%s has failed: deleting it and creating it again.", self.name)
            scaling.unscale(self.account, self.name)
            delete_endpoint(self.account, self.name, poll=self.options.poll)
            return None
        return existing

    def put(self, archive: Path | None) -> str:
        """Begin to create or update the endpoint with a model, see `make_model`. Returns MADE, UPDATED or UNCHANGED."""
        options, existing, places = self.options, self.existing, self.account.places
        model = self.make_model(archive)
        output, captured = places.uri("async", self.name, "answers"), places.uri("captured", self.name)
        request = requests.config_request(
            options, existing, model=model, mode=self.mode, output=output, captured=captured
        )
        config = self.make("endpoint-config", request)
        if existing is None:
            self._create(config)
            return MADE
        if existing.config_name == config:
            log.info("%s has this model and this configuration already.", self.name)
            return UNCHANGED
        alarms = [*options.alarms]
        if self.mode != SERVERLESS:
            alarms.append(scaling.watch_errors(self.account, self.name))
        count = max(int(existing.variant.get("InitialInstanceCount") or 1), options.instance_count or 1)
        update(self.account, existing, config, requests.deployment_request(options, self.mode, count, alarms))
        return UPDATED

    def make_model(self, archive: Path | None) -> str:
        """Create a model of the model.tar.gz or the plan's registered version, unless it exists; return its name."""
        options, existing, package = self.options, self.existing, self.plan.package
        role = self.role()
        if package is not None:
            content = {"ModelPackageName": package}
        else:
            assert archive is not None
            image = requests.select_image(options, existing, self.account.region, self.mode)
            content = {"Image": image, "ModelDataUrl": self.upload(archive)}
        return self.make("model", requests.model_request(options, existing, content=content, role=role, mode=self.mode))

    def role(self) -> str:
        """ARN of the requested role, or of the existing endpoint's."""
        if self.options.role is None and self.existing is not None and self.existing.model.get("ExecutionRoleArn"):
            return str(self.existing.model["ExecutionRoleArn"])
        return self.account.role_arn

    def upload(self, archive: Path) -> str:
        """Upload the archive, and return its S3 URI, which depends on its content."""
        uri = archive_place(self.account, self.name, sha256_of(archive))
        upload_file(archive, uri, self.account.client("s3"), extra=self.account.encryption)
        return uri

    def make(self, kind: str, request: requests.Request) -> str:
        """Create a model or endpoint-config unless an identical one exists. Returns its name."""
        client = self.account.client("sagemaker")
        what, create = {
            "model": ("Model", client.create_model),
            "endpoint-config": ("EndpointConfig", client.create_endpoint_config),
        }[kind]
        name = name_by_content(self.name, request)
        if not describe_resource(self.account, what, name):
            tags = as_list({**self.options.tags, **tags_of(kind, self.name)})
            with explain_refusals(f"create the {kind} {name}"):
                create(**{f"{what}Name": name}, **request, Tags=tags)
        return name

    def _create(self, config: str) -> None:
        tags = tags_of("endpoint", self.name, {RUN_TAG: tag_text(self.plan.source)})
        with (
            warn_if_created("the endpoint", delete_command(self.name, self.options)),
            explain_refusals(f"create the endpoint {self.name}"),
        ):
            self.account.client("sagemaker").create_endpoint(
                EndpointName=self.name, EndpointConfigName=config, Tags=as_list({**self.options.tags, **tags})
            )
        log.info("Created the endpoint %s.", self.name)

    def finish(self) -> EndpointState:
        """Wait until the endpoint answers. Raises UserError with the reason if it fails."""
        state = wait_until_settled(self.account, self.name, poll=self.options.poll)
        if state is None:
            raise UserError(f"The endpoint {self.name} was deleted while it was being created.")
        if state.status != "InService":
            raise UserError(f"The endpoint {self.name} failed: {explain_failure(self.account, state)}")
        return state

    def arrived(self, state: EndpointState, before: str | None) -> None:
        """Raise UserError if AWS rolled the update back to the configuration `before`."""
        if before is not None and state.config_name == before:
            reason = explain_failure(self.account, state)
            raise UserError(f"The update of {self.name} failed, and AWS rolled it back: {reason}")

    def scale(self, state: EndpointState) -> None:
        """Set up the requested autoscaling, or that of the existing endpoint."""
        before = self.scaled
        now = scaling.select_scaling(self.options, self.mode, before)
        if now is not None:
            note(self.account, state, SCALING_TAG, str(now))
            scaling.scale(self.account, self.name, now, self.mode)
        elif before is not None:
            note(self.account, state, SCALING_TAG, "none")
            scaling.unscale(self.account, self.name)
            log.info("Autoscaling of %s is off.", self.name)


def archive_place(account: Account, name: str, digest: str) -> str:
    """S3 URI of the archive with this SHA-256."""
    return account.places.uri("endpoints", name, digest[:16], "model.tar.gz")


def update(account: Account, existing: EndpointState, config: str, deployment: requests.Request) -> None:
    """Begin to switch the endpoint to the configuration `config`, and record the current one as the previous one."""
    scaled = scaling.target_of(account, existing.name)
    new = describe_resource(account, "EndpointConfig", config)["ProductionVariants"][0]
    if scaled and new.get("InstanceType") != existing.variant.get("InstanceType"):
        # AWS cannot change the instance type of a scaled endpoint; a tag of the endpoint records its scaling.
        scaling.unscale(account, existing.name)
        scaled = {}
    note(account, existing, PREVIOUS_TAG, existing.config_name)
    with explain_refusals(f"update the endpoint {existing.name}"):
        account.client("sagemaker").update_endpoint(
            EndpointName=existing.name,
            EndpointConfigName=config,
            **({"RetainAllVariantProperties": True} if scaled else {}),  # keeps the current instance count
            **({"DeploymentConfig": deployment} if deployment else {}),
        )
    log.info("Updating %s to the configuration %s.", existing.name, config)


def note(account: Account, state: EndpointState, tag: str, value: str) -> None:
    """Set a tag of the endpoint."""
    with explain_refusals(f"tag the endpoint {state.name}"):
        account.client("sagemaker").add_tags(ResourceArn=state.arn, Tags=[{"Key": tag, "Value": value}])


def roll_back(account: Account, name: str, *, poll: float) -> str:
    """Switch the endpoint to its previous configuration, and wait. Returns the name of that configuration.

    Raises UserError if there is no previous configuration, or AWS fails to switch.
    """
    existing = get_endpoint(account, name)
    if existing.status in BUSY:
        existing = wait_until_settled(account, name, poll=poll) or get_endpoint(account, name)
    previous = previous_config(account, existing)
    update(account, existing, previous, {})
    state = wait_until_settled(account, name, poll=poll)
    if state is None or state.status != "InService" or state.config_name != previous:
        reason = explain_failure(account, state) if state else "it was deleted"
        raise UserError(f"{name} could not be rolled back: {reason}")
    recorded = scaling.recorded_scaling(account, state)
    if recorded is not None and not scaling.target_of(account, name):
        scaling.scale(account, name, recorded, requests.mode_of(state.config))
    return previous


def previous_config(account: Account, state: EndpointState) -> str:
    """The endpoint's previous configuration; if that is not recorded, the newest one older than the current one.

    Raises UserError if there is none.
    """
    recorded = read_tags_of(account, state.arn).get(PREVIOUS_TAG)
    if recorded and recorded != state.config_name and describe_resource(account, "EndpointConfig", recorded):
        return recorded
    made = state.config.get("CreationTime")
    with explain_refusals(f"list the configurations of {state.name}"):
        pages = account.client("sagemaker").get_paginator("list_endpoint_configs")
        pages = pages.paginate(NameContains=f"{state.name}-", SortBy="CreationTime", SortOrder="Descending")
        configs = [config for page in pages for config in page["EndpointConfigs"]]
    for config in configs:
        older = made is None or config["CreationTime"] <= made
        tags = read_tags_of(account, config["EndpointConfigArn"])
        if older and config["EndpointConfigName"] != state.config_name and tags.get(ENDPOINT_TAG) == state.name:
            return str(config["EndpointConfigName"])
    raise UserError(f"The endpoint {state.name} has had no other configuration to roll back to.")


def delete_endpoint(account: Account, name: str, *, poll: float) -> bool:
    """Delete the endpoint and wait until that is done. Returns whether it existed. Raises UserError."""
    client = account.client("sagemaker")
    for _ in range(2):
        with explain_refusals(f"delete the endpoint {name}"):
            try:
                client.delete_endpoint(EndpointName=name)
            except Exception as error:
                if is_missing(error):
                    return False
                if error_code(error) != "ValidationException":
                    raise
                log.info("%s is being changed; it will be deleted after that.", name)
        try:
            if wait_until_settled(account, name, poll=poll, whole=False) is None:
                return True
        except UserError as error:
            if not is_denied(error):
                raise
            log.warning("%s is being deleted. You may not watch that: %s", name, error)
            return True
    raise UserError(f"The endpoint {name} was not deleted. Try again in a few minutes.")
