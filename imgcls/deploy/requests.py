"""The requests that create a model and an endpoint configuration from the options and the existing endpoint."""

from __future__ import annotations

import re
from typing import Any

from imgcls.aws.instances import has_local_disk, is_graviton
from imgcls.deploy.names import VARIANT
from imgcls.deploy.options import ASYNCHRONOUS, REAL_TIME, SERVERLESS, Options
from imgcls.deploy.state import EndpointState
from imgcls.errors import UserError, nearest
from imgcls.launch.sagemaker.wheels import image_python
from imgcls.system.extras import need

Request = dict[str, Any]

INSTANCE_TYPE = "ml.m5.large"
ARM_TYPE = "ml.c7g.large"  # one whose image is in a repository of its own
FRAMEWORK = "2.6.0"
OLDEST_PYTHON = (3, 11)
AMI = "InferenceAmiVersion"
ARM_IMAGE = "-arm64:"
MEMORY_MB, CONCURRENCY, ASYNC_CONCURRENCY = 3072, 5, 4
AWS_IMAGE = re.compile(r"\.dkr\.ecr\.[\w-]+\.amazonaws\.[\w.]+/pytorch-inference(?:-arm64)?:")
CANARY_PERCENT = 10  # of the capacity, in the first step
STEP_PERCENT = 10  # of the capacity
UPDATE_SECONDS, MAX_UPDATE_SECONDS = 1800, 28800  # without the bake time; the maximum of AWS
ENVIRONMENT = {
    "SAGEMAKER_PROGRAM": "inference.py",
    "SAGEMAKER_SUBMIT_DIRECTORY": "/opt/ml/model/code",
    "SAGEMAKER_CONTAINER_LOG_LEVEL": "20",
}
ONE_WORKER = {"SAGEMAKER_MODEL_SERVER_WORKERS": "1"}  # of a serverless endpoint, to save memory


def mode_of(config: Request) -> str:
    """The mode of endpoints with this configuration."""
    if config.get("AsyncInferenceConfig"):
        return ASYNCHRONOUS
    variants = config.get("ProductionVariants") or [{}]
    return SERVERLESS if variants[0].get("ServerlessConfig") else REAL_TIME


def select_mode(options: Options, existing: EndpointState | None) -> str:
    """The requested mode, or the existing endpoint's. Raises UserError if they differ."""
    if existing is None or not existing.config:
        return options.mode or REAL_TIME
    mode = mode_of(existing.config)
    if options.mode not in (None, mode):
        raise UserError(
            f"mode={options.mode}: the endpoint {existing.name} is {mode}, which cannot be changed. "
            "Give another name=…, or delete it first."
        )
    return mode


def instance_type_of(options: Options, existing: EndpointState | None) -> str:
    """The requested instance type, the existing endpoint's, or the default."""
    return str(options.instance_type or (existing.variant.get("InstanceType") if existing else None) or INSTANCE_TYPE)


def max_instance_count(options: Options, existing: EndpointState | None) -> int:
    """The largest number of instances that the options allow."""
    count = options.instance_count or (existing.variant.get("InitialInstanceCount") if existing else None) or 1
    return max(int(count), options.max_instances or 0)


def model_request(
    options: Options, existing: EndpointState | None, *, content: Request, role: str, mode: str
) -> Request:
    """The fields of CreateModel, except name and tags.

    Args:
        content: image and model.tar.gz of the container, or its registered version.
        role: ARN of the endpoint's role.
    """
    environment = {
        **((existing.container.get("Environment") if existing else None) or {}),
        **options.environment,
        **ENVIRONMENT,
        **(ONE_WORKER if mode == SERVERLESS else {}),
    }
    request: Request = {"PrimaryContainer": {**content, "Environment": environment}, "ExecutionRoleArn": role}
    vpc = (existing.model.get("VpcConfig") if existing else None) or {}
    if options.subnets:
        vpc = {"Subnets": options.subnets, "SecurityGroupIds": options.security_groups}
    if vpc:
        request["VpcConfig"] = vpc
    isolated = options.network_isolation
    if isolated is None and existing is not None:
        isolated = existing.model.get("EnableNetworkIsolation")
    if isolated:
        request["EnableNetworkIsolation"] = True
    return request


def config_request(
    options: Options, existing: EndpointState | None, *, model: str, mode: str, output: str, captured: str
) -> Request:
    """The fields of CreateEndpointConfig, except name and tags.

    Args:
        model: name of the model.
        output: s3:// URI for an asynchronous endpoint's answers, unless the options give one.
        captured: s3:// URI for captured requests.
    """
    before, current = (existing.config, existing.variant) if existing else ({}, {})
    variant: Request = {"VariantName": VARIANT, "ModelName": model}
    if mode == SERVERLESS:
        variant["ServerlessConfig"] = serverless_config(options, current.get("ServerlessConfig"))
    else:
        kind = instance_type_of(options, existing)
        variant["InstanceType"] = kind
        count = options.instance_count or current.get("InitialInstanceCount")
        variant["InitialInstanceCount"] = int(count or max(1, options.min_instances or 1))
        variant["InitialVariantWeight"] = 1.0
        timeout_name = "ContainerStartupHealthCheckTimeoutInSeconds"
        timeout = options.startup_timeout or current.get(timeout_name)
        if timeout:
            variant[timeout_name] = timeout
        if ami := options.inference_ami or (current.get(AMI) if kind == current.get("InstanceType") else None):
            variant[AMI] = ami
    request: Request = {"ProductionVariants": [variant]}
    key = options.kms_key or before.get("KmsKeyId")
    if key and mode != SERVERLESS and not has_local_disk(variant["InstanceType"]):
        request["KmsKeyId"] = key
    if mode == ASYNCHRONOUS:
        request["AsyncInferenceConfig"] = async_config(options, before.get("AsyncInferenceConfig") or {}, output, key)
    capture = before.get("DataCaptureConfig") or {}
    if options.capture:
        capture = capture_config(options.capture, captured, key)
    if capture.get("EnableCapture") and options.capture != 0:
        request["DataCaptureConfig"] = capture
    return request


def serverless_config(options: Options, before: Request | None) -> Request:
    """Memory and concurrency of a serverless endpoint."""
    current = before or {}
    memory = options.memory or current.get("MemorySizeInMB") or MEMORY_MB
    concurrency = options.concurrency or current.get("MaxConcurrency") or CONCURRENCY
    provisioned = options.provisioned if options.provisioned is not None else current.get("ProvisionedConcurrency")
    request: Request = {"MemorySizeInMB": memory, "MaxConcurrency": concurrency}
    if provisioned:
        if provisioned > concurrency:
            raise UserError(f"provisioned={provisioned}: must not exceed concurrency={concurrency}.")
        request["ProvisionedConcurrency"] = provisioned
    return request


def async_config(options: Options, before: Request, output: str, key: str | None) -> Request:
    """Output folder, notifications and concurrency of an asynchronous endpoint."""
    current, client = before.get("OutputConfig") or {}, before.get("ClientConfig") or {}
    folder = (options.output or current.get("S3OutputPath") or output).rstrip("/")
    answers: Request = {"S3OutputPath": folder, "S3FailurePath": f"{folder}/failed"}
    if key:
        answers["KmsKeyId"] = key
    topics = dict(current.get("NotificationConfig") or {})
    topics.update({"SuccessTopic": options.success_topic} if options.success_topic else {})
    topics.update({"ErrorTopic": options.error_topic} if options.error_topic else {})
    if topics:
        answers["NotificationConfig"] = topics
    concurrency = options.concurrency or client.get("MaxConcurrentInvocationsPerInstance") or ASYNC_CONCURRENCY
    return {"ClientConfig": {"MaxConcurrentInvocationsPerInstance": concurrency}, "OutputConfig": answers}


def capture_config(percent: int, folder: str, key: str | None) -> Request:
    """Capture of requests and answers in an S3 folder."""
    request: Request = {
        "EnableCapture": True,
        "InitialSamplingPercentage": percent,
        "DestinationS3Uri": folder,
        "CaptureOptions": [{"CaptureMode": "Input"}, {"CaptureMode": "Output"}],
    }
    return {**request, "KmsKeyId": key} if key else request


def deployment_request(options: Options, mode: str, count: int, alarms: list[str]) -> Request:
    """The blue/green update with its alarms; empty for serverless endpoints, which do not support it.

    Raises UserError if there are too few instances.
    """
    if mode == SERVERLESS:
        return {}
    kinds = {"all": "ALL_AT_ONCE", "canary": "CANARY", "linear": "LINEAR"}
    routing: Request = {"Type": kinds[options.traffic], "WaitIntervalInSeconds": options.bake}
    if options.traffic != "all" and count < 2:
        raise UserError(f"traffic={options.traffic} needs at least two instances: instance_count=2.")
    if options.traffic == "canary":
        routing["CanarySize"] = {"Type": "CAPACITY_PERCENT", "Value": CANARY_PERCENT}
    elif options.traffic == "linear":
        routing["LinearStepSize"] = {"Type": "CAPACITY_PERCENT", "Value": STEP_PERCENT}
    steps = 100 // STEP_PERCENT if options.traffic == "linear" else 1
    policy = {
        "TrafficRoutingConfiguration": routing,
        "TerminationWaitInSeconds": options.bake,
        "MaximumExecutionTimeoutInSeconds": min(MAX_UPDATE_SECONDS, UPDATE_SECONDS + (steps + 1) * options.bake),
    }
    request: Request = {"BlueGreenUpdatePolicy": policy}
    if alarms:
        request["AutoRollbackConfiguration"] = {"Alarms": [{"AlarmName": name} for name in alarms]}
    return request


def select_image(options: Options, existing: EndpointState | None, region: str, mode: str) -> str:
    """The requested container image, the existing endpoint's, or AWS's for the instance type. Raises UserError."""
    if options.image:
        return options.image
    kind = instance_type_of(options, existing) if mode != SERVERLESS else INSTANCE_TYPE
    if existing is not None and options.framework_version is None:
        current, current_kind = existing.container.get("Image"), existing.variant.get("InstanceType") or INSTANCE_TYPE
        if current and (not AWS_IMAGE.search(current) or kind == current_kind):
            return str(current)
    return image_uri(options.framework_version or FRAMEWORK, kind, region)


def image_uri(version: str, kind: str, region: str) -> str:
    """URI of AWS's PyTorch inference image. Raises UserError if there is none that imgcls runs on."""
    image_uris = need("sagemaker.core.image_uris")

    try:
        # Without a version of Python it is the image's: 3.12 from 2.6 on, 3.11 before.
        uri = str(image_uris.retrieve("pytorch", region, version=version, instance_type=kind, image_scope="inference"))
        python = image_python(uri)
        if python is not None and python < OLDEST_PYTHON:
            raise UserError(
                f"framework_version={version}: its image has Python {python[0]}.{python[1]}, and imgcls needs "
                f"{OLDEST_PYTHON[0]}.{OLDEST_PYTHON[1]}. Use {FRAMEWORK}."
            )
        if not is_graviton(kind) or ARM_IMAGE in uri:
            return uri
        message = ""  # the SDK does not know that this processor needs another image
    except ValueError as error:
        message = " ".join(str(error).split())
    if "unsupported region" in message.lower():
        raise UserError(f"region={region}: AWS has no PyTorch images in this region. Give image=URI.")
    if "version" not in message.lower():
        raise UserError(f"instance_type={kind}: AWS has no PyTorch image for this type. Use another one, or image=URI.")
    known = re.findall(r"\b\d+\.\d+\.\d+\b", message.partition("Supported")[2])
    raise UserError(
        f"framework_version={version}: AWS has no inference image of this version. {nearest(version, known)}"
    )
