"""A simulated AWS account: moto answers the requests of the SDK, and training jobs run for real."""

from __future__ import annotations

import functools
import json
import logging
import re
import sys
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib import import_module
from io import BytesIO
from typing import Any

from imgcls.launch.rehearsal.tuner import Tuner
from imgcls.launch.rehearsal.validation import violations
from imgcls.system.extras import need

log = logging.getLogger(__name__)

REGION = "us-east-1"
ACCOUNT = "123456789012"
ROLE = f"arn:aws:iam::{ACCOUNT}:role/rehearsal"
PARAMS = "imgcls-params"
TARGET = "HTTP_X_AMZ_TARGET"
TUNING_JOB = "HyperParameterTuningJobName"
MODULES = {"lambda": "awslambda", "application-autoscaling": "applicationautoscaling"}  # of moto, by service
EMPTY_ANSWERS = {  # of operations that moto does not have
    "AWSPriceListService.GetProducts": b'{"PriceList": []}',
    "ServiceQuotasV20190624.ListServiceQuotas": b'{"Quotas": []}',
    "ServiceQuotasV20190624.ListAWSDefaultServiceQuotas": b'{"Quotas": []}',
}
SERVICES = ("s3", "sagemaker", "logs", "lambda", "iam", "cloudwatch", "application-autoscaling")

Answerer = Callable[[re.Match[str], dict[str, Any], bytes], tuple[str, list[tuple[str, str]], bytes]]
"""Returns status, headers and body for (match of the path, WSGI environment, body of the request)."""


@dataclass(frozen=True)
class Call:
    """A call of AWS's API."""

    who: str
    service: str
    operation: str
    params: dict[str, Any]


@functools.cache
def _loader() -> Any:
    """botocore's descriptions of the services; they take long to read, so all sessions share them."""
    return import_module("botocore.loaders").create_loader()


def _record(kind: str, name: str) -> Any:
    for account in import_module("moto.backends").get_backend("sagemaker").values():
        for region in account.values():
            if name in getattr(region, kind):
                return getattr(region, kind)[name]
    raise KeyError(name)


def _keep_params(params: dict[str, Any], context: dict[str, Any], **_: Any) -> None:
    context[PARAMS] = dict(params)


class LocalAws:
    """A simulated AWS account in this process, with S3, SageMaker, CloudWatch Logs, IAM and STS.

    Args:
        run_job: receives the request of each CreateTrainingJob that moto has accepted, including tuning trials.
        stop_job: receives the name of each job that StopTrainingJob stops.
        strict: refuse requests that AWS's description of the service forbids; moto accepts almost everything.
    """

    def __init__(
        self, run_job: Callable[[dict[str, Any]], None], stop_job: Callable[[str], None], *, strict: bool = False
    ) -> None:
        self.run_job, self.stop_job, self.strict = run_job, stop_job, strict
        self.calls: list[Call] = []
        """All calls of the sessions, in order."""
        self.paths: list[tuple[re.Pattern[str], Answerer]] = []
        """Handlers of paths that moto does not answer."""
        self.operations: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
            "StopTrainingJob": self._stop,
            "StopHyperParameterTuningJob": self._stop_tuning,
            "ListTrainingJobsForHyperParameterTuningJob": self._trials,
        }
        """Handlers of SageMaker operations that moto does not answer."""
        self.after: dict[str, Callable[[dict[str, Any]], None]] = {
            "CreateTrainingJob": lambda request: self.run_job(request),
            "CreateHyperParameterTuningJob": self._tune,
        }
        """Handlers of requests that are called after moto has accepted them, by SageMaker operation."""
        self.refuse: Callable[[Call], None] = lambda call: None
        """Is called with each call of a person before it is sent, and raises what botocore then raises."""
        self._tuner = Tuner(self._make_trial, lambda name: self.stop_job(name), self.job)
        self._server: Any = None
        self._thread: threading.Thread | None = None

    def __enter__(self) -> LocalAws:
        moto = need("moto.server", "rehearsal", "A rehearsal")
        make_server = import_module("werkzeug.serving").make_server
        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        self._moto = moto.DomainDispatcherApplication(moto.create_backend_app)
        handler = moto.MotoRequestHandler
        self._server = make_server("127.0.0.1", 0, self._answer, threaded=True, request_handler=handler)
        self._thread = threading.Thread(target=self._server.serve_forever, name="imgcls-aws", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._tuner.close()
        self._server.shutdown()
        self._server.server_close()
        backends = import_module("moto.backends")
        for service in SERVICES:
            if f"moto.{MODULES.get(service, service)}" not in sys.modules:
                continue  # it was not used, and takes long to load
            for account in backends.get_backend(service).values():
                for backend in account.values():
                    backend.reset()

    @property
    def address(self) -> str:
        """URL of the account: http://127.0.0.1:port."""
        return f"http://127.0.0.1:{self._server.server_port}"

    def session(self, who: str = "person") -> Any:
        """A boto3 session of this account without the user's settings; `who` marks its calls: person or role."""
        botocore = import_module("botocore.session").Session()
        for name in ("config_file", "credentials_file"):
            botocore.set_config_variable(name, "/dev/null")
        botocore.set_config_variable("profile", None)
        botocore.register_component("data_loader", _loader())
        address = self.address
        boto3 = import_module("boto3")

        class Session(boto3.Session):  # type: ignore[name-defined]
            """Its clients and resources use this machine."""

            def client(self, *args: Any, **options: Any) -> Any:
                return super().client(*args, **{**options, "endpoint_url": address})

            def resource(self, *args: Any, **options: Any) -> Any:
                return super().resource(*args, **{**options, "endpoint_url": address})

        session = Session("rehearsal", "rehearsal", region_name=REGION, botocore_session=botocore)
        session.events.register("before-parameter-build", _keep_params)
        session.events.register("before-call", functools.partial(self._record_call, who))  # not for unsent requests
        return session

    def _record_call(self, who: str, model: Any, context: dict[str, Any], **_: Any) -> None:
        """Keep the call, and refuse it as AWS would if it is not valid."""
        call = Call(who, model.service_model.service_name, model.name, context[PARAMS])
        self.calls.append(call)
        if who == "person":
            self.refuse(call)
        if not self.strict or model.input_shape is None:
            return
        refused = list(violations(model.input_shape, context[PARAMS]))
        if refused:
            plural = "s" if len(refused) > 1 else ""
            message = f"{len(refused)} validation error{plural} detected: {'; '.join(refused)}"
            answer = {"Error": {"Code": "ValidationException", "Message": message}}
            raise import_module("botocore.exceptions").ClientError(answer, model.name)

    def add_role(self, role: str, service: str = "sagemaker.amazonaws.com") -> None:
        """Give the account the role with this name, path/name or ARN, which `service` may assume, without a call."""
        path, _, short = role.rpartition(":role/")[2].rpartition("/")
        backend = import_module("moto.iam.models").iam_backends[ACCOUNT]["aws"]
        if any(existing.name == short for existing in backend.roles.values()):
            return
        document = {"Statement": [{"Effect": "Allow", "Principal": {"Service": service}, "Action": "sts:AssumeRole"}]}
        path = f"/{path}/" if path else "/"
        backend.create_role(short, json.dumps(document), path, None, "", [], 3600)

    def job(self, name: str) -> Any:
        """moto's record of a job, the source of DescribeTrainingJob."""
        return _record("training_jobs", name)

    def tuning_job(self, name: str) -> Any:
        """moto's record of a tuning job, the source of DescribeHyperParameterTuningJob."""
        return _record("hyper_parameter_tuning_jobs", name)

    def _answer(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        for pattern, answerer in self.paths:
            match = pattern.fullmatch(str(environ.get("PATH_INFO", "")))
            if match is not None:
                length = int(environ.get("CONTENT_LENGTH") or 0)
                code, headers, content = answerer(match, environ, environ["wsgi.input"].read(length))
                start_response(code, headers)
                return [content]
        operation = str(environ.get(TARGET, ""))
        if operation in EMPTY_ANSWERS:
            start_response("200 OK", [("Content-Type", "application/x-amz-json-1.1")])
            return [EMPTY_ANSWERS[operation]]
        if not operation.startswith("SageMaker."):
            answer: Iterable[bytes] = self._moto(environ, start_response)
            return answer
        body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        environ["wsgi.input"] = BytesIO(body)
        operation, content = operation.partition(".")[2], json.loads(body or b"{}")
        if operation in self.operations:
            response = json.dumps(self.operations[operation](content)).encode()
            start_response("200 OK", [("Content-Type", "application/x-amz-json-1.1")])
            return [response]
        status: list[str] = []

        def start(code: str, *rest: Any, **more: Any) -> Any:
            status.append(code)
            return start_response(code, *rest, **more)

        answer = self._moto(environ, start)
        if operation in self.after and status and status[0].startswith("200"):
            self.after[operation](content)
        return answer

    def _stop(self, request: dict[str, Any]) -> dict[str, Any]:
        self.stop_job(request["TrainingJobName"])
        return {}

    def _tune(self, request: dict[str, Any]) -> None:
        self._tuner.begin(request, self.tuning_job(request[TUNING_JOB]))

    def _stop_tuning(self, request: dict[str, Any]) -> dict[str, Any]:
        self._tuner.stop(request[TUNING_JOB])
        return {}

    def _trials(self, request: dict[str, Any]) -> dict[str, Any]:
        return {"TrainingJobSummaries": self._tuner.summaries(request[TUNING_JOB])}

    def _make_trial(self, request: dict[str, Any]) -> None:
        self.session("service").client("sagemaker").create_training_job(**request)
