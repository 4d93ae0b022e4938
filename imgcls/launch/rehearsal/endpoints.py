"""Endpoints and functions of a rehearsal: what moto only records runs for real.

An endpoint serves the uploaded `model.tar.gz` in a separate process; UpdateEndpoint takes effect when the new process
answers; a Lambda function runs its code. Everything ends with the account.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from imgcls.aws.s3 import split_uri
from imgcls.errors import UserError
from imgcls.launch.rehearsal.aws import REGION, LocalAws
from imgcls.serve.local import Container, serve_archive
from imgcls.system.unpacking import extract

Response = tuple[str, list[tuple[str, str]], bytes]

JSON = ("Content-Type", "application/json")
MEGABYTE = 1 << 20
CALL = """
import json, sys, lambda_function
print(json.dumps(lambda_function.lambda_handler(json.load(sys.stdin))))
"""


class Endpoints:
    """The endpoints and functions of the account `aws`, which runs them from now on."""

    def __init__(self, aws: LocalAws) -> None:
        self.aws = aws
        self.s3 = aws.session("role").client("s3")
        self.running: dict[str, tuple[contextlib.ExitStack, Container]] = {}
        """Name of a configuration to the process that serves it."""
        self.warm: dict[str, int] = {}
        """Provisioned concurrency by function."""
        self._threads: list[threading.Thread] = []
        self._lock, self._closed = threading.Lock(), False
        # moto's list of instance types is years old; the account itself checks them against botocore's
        self._config_class = import_module("moto.sagemaker.models").FakeEndpointConfig
        self._check_type = self._config_class.validate_instance_type
        self._config_class.validate_instance_type = lambda config, instance_type: None
        aws.after["CreateEndpoint"] = lambda request: self._begin(request, "Creating")
        aws.after["CreateTransformJob"] = self._transform
        aws.operations["UpdateEndpoint"] = self._update
        aws.operations["UpdateModelPackage"] = self._judge
        aws.operations["DeleteModelPackage"] = self._forget_package
        aws.operations["DeleteModelPackageGroup"] = self._forget_group
        aws.paths += [
            (re.compile(r"/endpoints/([^/]+)/invocations"), self._invoke),
            (re.compile(r"/endpoints/([^/]+)/async-invocations"), self._invoke_async),
            (re.compile(r"/2019-09-30/functions/([^/]+)/provisioned-concurrency"), self._provision),
            (re.compile(r"/2015-03-31/functions/([^/]+)/invocations"), self._invoke_function),
        ]

    def close(self) -> None:
        """End all processes."""
        self._config_class.validate_instance_type = self._check_type
        with self._lock:
            self._closed = True
        for thread in self._threads:
            thread.join()
        for stack, _ in self.running.values():
            stack.close()
        self.running.clear()

    @property
    def _sagemaker(self) -> Any:
        """moto's records."""
        (account,) = import_module("moto.backends").get_backend("sagemaker").values()
        return account[REGION]

    def _begin(self, request: dict[str, Any], status: str) -> None:
        record = self._sagemaker.endpoints[request["EndpointName"]]
        record.endpoint_status = status
        thread = threading.Thread(target=self._start, args=(record, request["EndpointConfigName"], status))
        self._threads.append(thread)
        thread.start()

    def _start(self, record: Any, config: str, status: str) -> None:
        """Serve the model of `config` and switch the endpoint to it; if that fails, the endpoint stays as it was."""
        reason = None
        try:
            if config not in self.running:
                self._serve(config)
        except Exception as error:
            reason = f"{error}" if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        record.failure_reason = reason
        if reason is None:
            record.endpoint_config_name = config
            variants = self._sagemaker.endpoint_configs[config].production_variants
            record.production_variants = record._process_production_variants(variants)
        record.endpoint_status = "Failed" if reason is not None and status == "Creating" else "InService"

    def _serve(self, config: str) -> None:
        variant = self._sagemaker.endpoint_configs[config].production_variants[0]
        self.running[config] = self._run(variant["ModelName"], {})

    def _run(self, model: str, more: Mapping[str, str]) -> tuple[contextlib.ExitStack, Container]:
        """A process with the model of this name, and with `more` in its environment."""
        container = self._sagemaker._models[model].primary_container
        environment = {**(container.get("Environment") or {}), **more}
        if "ModelPackageName" in container:
            [container] = self._package(container["ModelPackageName"]).inference_specification["Containers"]
        bucket, key = split_uri(container["ModelDataUrl"])
        with tempfile.TemporaryDirectory(prefix="imgcls-") as work:
            archive = Path(work) / "model.tar.gz"
            archive.write_bytes(self.s3.get_object(Bucket=bucket, Key=key)["Body"].read())
            with self._lock:
                if self._closed:
                    raise UserError("The account was closed.")
            stack = contextlib.ExitStack()
            return stack, stack.enter_context(serve_archive(archive, environment))

    def _package(self, arn: str) -> Any:
        """moto's record of a version of a registered model."""
        return next(package for package in self._sagemaker.model_packages.values() if package.arn == arn)

    def _judge(self, request: dict[str, Any]) -> dict[str, Any]:
        """UpdateModelPackage; moto's would remove all that the request does not name."""
        package = self._package(request["ModelPackageArn"])
        package.set_model_approval_status(request.get("ModelApprovalStatus"))
        package.approval_description = request.get("ApprovalDescription", package.approval_description)
        package.modifications_done()
        return {"ModelPackageArn": package.arn}

    def _forget_package(self, request: dict[str, Any]) -> dict[str, Any]:
        del self._sagemaker.model_packages[self._package(request["ModelPackageName"]).arn]
        return {}

    def _forget_group(self, request: dict[str, Any]) -> dict[str, Any]:
        del self._sagemaker.model_package_groups[request["ModelPackageGroupName"]]
        return {}

    def _transform(self, request: dict[str, Any]) -> None:
        record = self._sagemaker.transform_jobs[request["TransformJobName"]]
        record.transform_job_status = "InProgress"
        thread = threading.Thread(target=self._transform_all, args=(record, request))
        self._threads.append(thread)
        thread.start()

    def _transform_all(self, record: Any, request: dict[str, Any]) -> None:
        """Answer every image of the job's manifest; as in AWS, the first that is refused ends the job."""
        try:
            given, output = request["TransformInput"], request["TransformOutput"]
            first, *names = json.loads(self._read(given["DataSource"]["S3DataSource"]["S3Uri"]))
            stack, container = self._run(request["ModelName"], request.get("Environment") or {})
            with stack:
                for name in names:
                    body = self._read(f"{first['prefix']}{name}")
                    status, _, answer = container.ask(body, given["ContentType"], output["Accept"])
                    if status != 200:
                        raise UserError(f"{name}: {status}, {answer.decode('utf-8', 'replace')}")
                    bucket, key = split_uri(f"{output['S3OutputPath']}/{name}.out")
                    self.s3.put_object(Bucket=bucket, Key=key, Body=answer)
            record.transform_job_status = "Completed"
        except Exception as error:
            record.failure_reason, record.transform_job_status = f"{error}", "Failed"

    def _read(self, uri: str) -> bytes:
        bucket, key = split_uri(uri)
        content: bytes = self.s3.get_object(Bucket=bucket, Key=key)["Body"].read()
        return content

    def _update(self, request: dict[str, Any]) -> dict[str, Any]:
        self._begin(request, "Updating")
        return {"EndpointArn": self._sagemaker.endpoints[request["EndpointName"]].arn}

    def _container(self, endpoint: str) -> tuple[Any, Container] | None:
        """The endpoint's configuration and container; None if it does not answer."""
        record = self._sagemaker.endpoints.get(endpoint)
        if record is None or record.endpoint_config_name not in self.running:
            return None
        config = self._sagemaker.endpoint_configs[record.endpoint_config_name]
        return config, self.running[record.endpoint_config_name][1]

    def _invoke(self, match: re.Match[str], environ: Mapping[str, Any], body: bytes) -> Response:
        found = self._container(match[1])
        if found is None:
            return _error("400 Bad Request", "ValidationError", f"Endpoint {match[1]} not found.")
        limit = 4 if "ServerlessConfig" in found[0].production_variants[0] else 6
        if len(body) > limit * MEGABYTE:
            return _error("413 Payload Too Large", "RequestEntityTooLarge", f"The payload has more than {limit} MB.")
        status, kind, answer = found[1].ask(body, environ.get("CONTENT_TYPE", ""), environ.get("HTTP_ACCEPT", ""))
        if status == 200:
            return "200 OK", [("Content-Type", kind)], answer
        return _error(
            "424 Failed Dependency",
            "ModelError",
            f"Received {status} from primary with message {answer.decode('utf-8', 'replace')!r}",
            OriginalStatusCode=status,
            OriginalMessage=answer.decode("utf-8", "replace"),
        )

    def _invoke_async(self, match: re.Match[str], environ: Mapping[str, Any], body: bytes) -> Response:
        found = self._container(match[1])
        if found is None:
            return _error("400 Bad Request", "ValidationError", f"Endpoint {match[1]} not found.")
        output = found[0].async_inference_config["OutputConfig"]
        bucket, key = split_uri(environ["HTTP_X_AMZN_SAGEMAKER_INPUTLOCATION"])
        content = self.s3.get_object(Bucket=bucket, Key=key)["Body"].read()
        kind, accept = environ.get("HTTP_X_AMZN_SAGEMAKER_CONTENT_TYPE", ""), "HTTP_X_AMZN_SAGEMAKER_ACCEPT"
        status, _, answer = found[1].ask(content, kind, environ.get(accept, ""))
        number = os.urandom(8).hex()
        locations = {
            "OutputLocation": f"{output['S3OutputPath']}/{number}.out",
            "FailureLocation": f"{output.get('S3FailurePath', output['S3OutputPath'])}/{number}-error.out",
        }
        bucket, key = split_uri(locations["OutputLocation" if status == 200 else "FailureLocation"])
        self.s3.put_object(Bucket=bucket, Key=key, Body=answer)
        headers = [(f"X-Amzn-SageMaker-{name}", uri) for name, uri in locations.items()]
        return "202 Accepted", [JSON, *headers], json.dumps({"InferenceId": number}).encode()

    def _provision(self, match: re.Match[str], environ: Mapping[str, Any], body: bytes) -> Response:
        name, method = match[1], environ["REQUEST_METHOD"]
        if method == "PUT":
            self.warm[name] = json.loads(body)["ProvisionedConcurrentExecutions"]
        elif method == "DELETE":
            self.warm.pop(name, None)
            return "204 No Content", [], b""
        if name not in self.warm:
            return _error("404 Not Found", "ProvisionedConcurrencyConfigNotFoundException", "Not found.")
        content = {"RequestedProvisionedConcurrentExecutions": self.warm[name], "Status": "READY"}
        return "202 Accepted" if method == "PUT" else "200 OK", [JSON], json.dumps(content).encode()

    def _invoke_function(self, match: re.Match[str], environ: Mapping[str, Any], body: bytes) -> Response:
        """Run the function's code in a separate process, with the variables that Lambda sets."""
        (account,) = import_module("moto.backends").get_backend("lambda").values()
        function = account[REGION].get_function(match[1])
        variables = {
            **{name: value for name, value in os.environ.items() if not name.startswith("AWS_")},
            **function.environment_vars,
            "AWS_ENDPOINT_URL": self.aws.address,
            "AWS_ACCESS_KEY_ID": "rehearsal",
            "AWS_SECRET_ACCESS_KEY": "rehearsal",
            "AWS_DEFAULT_REGION": REGION,
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        }
        with tempfile.TemporaryDirectory(prefix="imgcls-") as work:
            archive = Path(work) / "code.zip"
            archive.write_bytes(function.code_bytes)
            extract(archive, Path(work))
            done = subprocess.run(
                [sys.executable, "-c", CALL], cwd=work, env=variables, input=body, capture_output=True, timeout=60
            )
        if done.returncode:
            lines = done.stderr.decode("utf-8", "replace").strip().splitlines() or ["no reason"]
            content = json.dumps({"errorMessage": lines[-1]}).encode()
            return "200 OK", [JSON, ("X-Amz-Function-Error", "Unhandled")], content
        return "200 OK", [JSON], done.stdout


def _error(status: str, code: str, message: str, **more: Any) -> Response:
    content = json.dumps({"Message": message, "message": message, **more}).encode()
    return status, [JSON, ("x-amzn-errortype", code)], content
